import dataclasses

import pytest

from umd_eqx.errors import BadInput
from umd_eqx.sampling import (
    DDIM,
    Adaptive,
    DPMSolverPP,
    EDMGrid,
    Euler,
    Heun,
    LogSNRGrid,
    ReferenceGrid,
    ReverseSDE,
    SamplerConfig,
    ShiftedGrid,
    UniformGrid,
)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": -5}, "steps"),
        ({"eta": -0.1}, "eta"),
        ({"eta": 1.5}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"rtol": 0.0}, "rtol"),
        ({"atol": -1.0}, "atol"),
    ],
)
def test_numbers_that_cannot_work(changes, flag):
    config = SamplerConfig(**changes)
    for prefix, said in (("", f"--{flag}"), ("--eval.generation.sampler", f"--eval.generation.sampler.{flag}")):
        with pytest.raises(BadInput) as error:
            config.validate(prefix)
        assert error.value.field == said
        assert len(str(error.value)) < 120
    with pytest.raises(BadInput):
        config.build(latents=False)


@pytest.mark.parametrize(
    ("name", "kind", "grid"),
    [
        ("ddim", DDIM, ReferenceGrid),
        ("dpmpp", DPMSolverPP, LogSNRGrid),
        ("euler", Euler, UniformGrid),
        ("heun", Heun, EDMGrid),
        ("sde", ReverseSDE, EDMGrid),
    ],
)
def test_a_name_is_a_sampler(name, kind, grid):
    config = SamplerConfig(name=name, steps=7, head="v", clip=False)
    sampler = config.build(latents=False)
    assert type(sampler) is kind
    assert type(sampler.grid) is grid
    assert (sampler.steps, sampler.head, sampler.clip) == (7, "v", False)
    assert type(dataclasses.replace(config, grid="shifted").build(latents=False).grid) is ShiftedGrid


@pytest.mark.parametrize("name", ["tsit5", "dopri5"])
def test_adaptive_samplers_take_tolerances(name):
    sampler = SamplerConfig(name=name, rtol=1e-4, atol=1e-5).build(latents=False)
    assert type(sampler) is Adaptive
    assert (sampler.method, sampler.rtol, sampler.atol) == (name, 1e-4, 1e-5)


@pytest.mark.parametrize("name", ["ddim", "dpmpp", "euler", "heun", "sde", "tsit5"])
def test_latents_are_never_clipped(name):
    for clip in (True, False):
        config = SamplerConfig(name=name, clip=clip)
        assert (config.build(latents=True).clip, config.build(latents=False).clip) == (False, clip)
        assert (config.in_force(latents=True).clip, config.in_force(latents=False).clip) == (False, clip)


def test_what_is_sampled_has_to_be_said():
    with pytest.raises(TypeError, match="latents"):
        SamplerConfig().build()


def test_a_configuration_in_force_names_its_grid():
    assert SamplerConfig(name="dpmpp").in_force(latents=False).grid == "logsnr"
    assert SamplerConfig(name="dpmpp", grid="uniform").in_force(latents=False).grid == "uniform"
    assert SamplerConfig(name="tsit5", grid="uniform").in_force(latents=False).grid is None


def test_the_default_is_the_published_sampler():
    sampler = SamplerConfig().build(latents=False)
    assert isinstance(sampler, DDIM)
    assert (sampler.steps, sampler.eta, sampler.head, sampler.clip) == (125, 1.0, "eps", True)
