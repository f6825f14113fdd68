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
        config.build()


@pytest.mark.parametrize(
    ("name", "kind", "grid"),
    [
        ("ddim", DDIM, ReferenceGrid),
        ("dpmpp", DPMSolverPP, UniformGrid),
        ("euler", Euler, UniformGrid),
        ("heun", Heun, EDMGrid),
        ("sde", ReverseSDE, EDMGrid),
    ],
)
def test_a_name_is_a_sampler(name, kind, grid):
    config = SamplerConfig(name=name, steps=7, head="v", clip=False)
    sampler = config.build()
    assert type(sampler) is kind
    assert type(sampler.grid) is grid
    assert (sampler.steps, sampler.head, sampler.clip) == (7, "v", False)
    assert type(dataclasses.replace(config, grid="shifted").build().grid) is ShiftedGrid


@pytest.mark.parametrize("name", ["tsit5", "dopri5"])
def test_adaptive_samplers_take_tolerances(name):
    sampler = SamplerConfig(name=name, rtol=1e-4, atol=1e-5).build()
    assert type(sampler) is Adaptive
    assert (sampler.method, sampler.rtol, sampler.atol) == (name, 1e-4, 1e-5)


def test_the_default_is_the_published_sampler():
    sampler = SamplerConfig().build()
    assert isinstance(sampler, DDIM)
    assert (sampler.steps, sampler.eta, sampler.head, sampler.clip) == (125, 1.0, "eps", True)
