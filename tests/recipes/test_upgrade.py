"""Dumps that older versions wrote, in which an optimiser was always AdamW and a sampler was named by a string."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.dump import completed, dump, flatten, identity_fields, load, run_identity
from umd_eqx.recipes.pretrain import PUBLISHED_SAMPLER, SMALL_SAMPLER, latent_dit
from umd_eqx.recipes.upgrade import upgraded
from umd_eqx.report.rundir import RunDirectory
from umd_eqx.runs.remeasure import not_yet_measured
from umd_eqx.runs.workspace import claim
from umd_eqx.sampling import DDIM, Adaptive, DPMSolverPP, EDMGrid, Euler, Heun, ReverseSDE, ShiftedGrid, UniformGrid
from umd_eqx.training.optimisers import AdamW

KEPT = Path(__file__).parent / "kept" / "latent-dit-strings.json"
"""The `config.json` of a run that was made before optimisers and samplers were types."""


@pytest.fixture
def today():
    """The same configuration as of today."""
    config = latent_dit()
    generation = config.eval["generation"]
    adaptive = Adaptive(method="dopri5", steps=9, rtol=1e-2)
    more = {
        "adaptive": dataclasses.replace(generation, sampler=adaptive),
        "published": dataclasses.replace(generation, sampler=PUBLISHED_SAMPLER, every=25_000, samples=10_240),
    }
    optim = dataclasses.replace(config.optim, accumulate=2, mu_dtype="bfloat16")
    data = dataclasses.replace(config.data, max_broken=100)
    return dataclasses.replace(config, data=data, optim=optim, eval=config.eval | more)


def test_a_kept_configuration_loads_as_that_of_today(today):
    kept = json.loads(KEPT.read_text())["config"]
    config = load(kept)
    assert config == today
    assert type(config.optim) is AdamW
    assert config.eval["generation"].sampler == SMALL_SAMPLER
    assert completed(kept) == json.loads(json.dumps(dump(today)))
    assert identity_fields(flatten(completed(kept))) == run_identity(today)


def test_a_kept_run_is_continued_and_not_measured_again(today, tmp_path):
    shutil.copy(KEPT, tmp_path / "config.json")
    assert claim(tmp_path, today, "latent-dit") == json.loads(KEPT.read_text())
    assert not_yet_measured(RunDirectory.read(tmp_path), today.eval, 3000) == {}
    heun = dataclasses.replace(today.eval["generation"], sampler=Heun(steps=9))
    asked = not_yet_measured(RunDirectory.read(tmp_path), {"generation": heun}, 3000)
    assert list(asked) == ["generation[sampler.steps=9,sampler.type=Heun]"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, DDIM()),
        ({"name": "ddim", "steps": 9, "eta": 0.0, "clip": False}, DDIM(steps=9, eta=0.0, clip=False)),
        ({"name": "ddim", "grid": "uniform"}, DDIM(grid=UniformGrid())),
        ({"name": "dpmpp", "eta": 0.3, "head": "v"}, DPMSolverPP(steps=125, head="v")),
        ({"name": "euler", "steps": 7, "grid": "edm"}, Euler(steps=7, grid=EDMGrid())),
        ({"name": "heun", "steps": 7, "grid": "shifted"}, Heun(steps=7, grid=ShiftedGrid())),
        ({"name": "sde", "steps": 7, "grid": None}, ReverseSDE(steps=7)),
        ({"name": "tsit5", "grid": "edm", "atol": 0.1}, Adaptive(steps=125, atol=0.1)),
        ({"name": "dopri5", "rtol": 0.1}, Adaptive(method="dopri5", steps=125, rtol=0.1)),
    ],
)
def test_a_named_sampler_becomes_its_type(old, new):
    assert load({"type": "SamplerConfig"} | old) == new


@pytest.mark.parametrize("old", [{"name": "magic"}, {"name": ["ddim"]}, {"grid": "magic"}, {"grid": {"a": 1}}])
def test_a_name_that_never_was_is_refused_in_one_line(old):
    with pytest.raises(BadInput, match=r"config\.json: .* is not one of"):
        load({"type": "SamplerConfig"} | old)


def test_what_is_dumped_today_stays_as_it_is(today):
    data = json.loads(json.dumps(dump(today)))
    assert upgraded(data) == data
