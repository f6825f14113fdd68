"""The samplers by name, what they refuse, and what is in force."""

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.eval import Generation
from umd_eqx.sampling import (
    DDIM,
    GRIDS,
    SAMPLERS,
    Adaptive,
    DPMSolverPP,
    EDMGrid,
    Euler,
    Heun,
    LogSNRGrid,
    ReferenceGrid,
    ReverseSDE,
    ShiftedGrid,
    UniformGrid,
    effective_sampler,
)


@pytest.mark.parametrize(
    ("sampler", "field"),
    [
        *((SAMPLERS[name](steps=steps), "steps") for name in SAMPLERS for steps in (0, -5)),
        (DDIM(eta=-0.1), "eta"),
        (DDIM(eta=1.5), "eta"),
        (DDIM(eta=float("nan")), "eta"),
        (Adaptive(rtol=0.0), "rtol"),
        (Adaptive(atol=-1.0), "atol"),
        (DPMSolverPP(max_ratio=0.0), "max_ratio"),
        *((kind(grid=EDMGrid(rho=0.0)), "grid.rho") for kind in (DDIM, DPMSolverPP, Euler, Heun, ReverseSDE)),
        (Heun(grid=EDMGrid(sigma_min=0.0)), "grid.sigma_min"),
        (Heun(grid=EDMGrid(sigma_min=90.0)), "grid.sigma_min"),
        (DPMSolverPP(grid=LogSNRGrid(sigma_max=float("inf"))), "grid.sigma_min"),
        (Euler(grid=ShiftedGrid(base=0)), "grid.base"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_cannot_work(sampler, field):
    for prefix, said in (("", field), ("eval.generation.sampler", f"eval.generation.sampler.{field}")):
        with pytest.raises(BadInput) as error:
            sampler.validate(prefix)
        assert error.value.field == said
        assert len(str(error.value)) < 120
    with pytest.raises(BadInput):
        Generation(sampler=sampler).validate()


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
def test_a_name_is_a_sampler_with_its_usual_grid(name, kind, grid):
    sampler = SAMPLERS[name]()
    sampler.validate()
    assert (type(sampler), type(sampler.grid)) == (kind, grid)
    assert sampler.needs_rates == (name not in ("ddim", "dpmpp"))


@pytest.mark.parametrize("name", ["tsit5", "dopri5"])
def test_adaptive_samplers_have_a_method_and_no_grid(name):
    sampler = SAMPLERS[name]()
    assert (type(sampler), sampler.method, sampler.needs_rates) == (Adaptive, name, True)
    assert not hasattr(sampler, "grid")


def test_every_grid_has_a_name():
    assert {make for make in GRIDS.values()} == {ReferenceGrid, UniformGrid, EDMGrid, LogSNRGrid, ShiftedGrid}


@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_are_never_clipped(name):
    for clip in (True, False):
        sampler = SAMPLERS[name](clip=clip)
        assert (effective_sampler(sampler, latents=True).clip, effective_sampler(sampler, latents=False).clip) == (
            False,
            clip,
        )
        assert effective_sampler(sampler, latents=False) == sampler


def test_what_is_sampled_has_to_be_said():
    with pytest.raises(TypeError, match="latents"):
        effective_sampler(DDIM())


def test_the_default_is_the_published_sampler():
    sampler = Generation().sampler
    assert isinstance(sampler, DDIM)
    assert (sampler.steps, sampler.eta, sampler.grid) == (125, 1.0, ReferenceGrid())
    assert (sampler.head, sampler.clip) == ("eps", True)
