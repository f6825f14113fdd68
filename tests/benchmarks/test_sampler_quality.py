"""The benchmark of quality against calls, on a random network: its JSON output is a stable interface."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import jax
import pytest
from sampling.known import Sure

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosinePath, CosineTable
from umd_eqx.core.sharding import make_mesh
from umd_eqx.models import ModelConfig
from umd_eqx.recipes.pretrain import umd
from umd_eqx.runs.pretrained import Pretrained, export
from umd_eqx.sampling import DDIM

FILE = Path(__file__).parents[2] / "benchmarks" / "sampler_quality.py"


@pytest.fixture
def quality(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_sampler_quality", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    return module


@pytest.fixture
def exported(random_model, tmp_path):
    """`exported(labels)`: the name of a file with the weights of a random network for the shipped images."""

    def make(labels: bool) -> str:
        config = ModelConfig(variant="mu/7", labels=labels, class_tokens=1)
        model = random_model(28, 1, 10, variant="mu/7", labels=labels, class_tokens=1)
        data = umd().data
        file = tmp_path / f"{labels}.safetensors"
        export(Pretrained(model, config, CosineTable(), data, data.describe(), "umd-ft", 7, "ema"), file)
        return str(file)

    return make


def test_its_rows_and_its_plot(quality, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "SAMPLERS", {"Euler": quality.SAMPLERS["Euler"]})
    monkeypatch.setattr(quality, "ADAPTIVE", {"tsit5, rtol 0.1": quality.ADAPTIVE["tsit5, rtol 0.1"]})
    rows, plot = tmp_path / "rows.json", tmp_path / "plot.png"
    words = ["--run", exported(True), "--calls", "2", "3", "--samples", "12", "--batch-size", "12"]
    assert quality.main([*words, "--json", str(rows), "--plot", str(plot)]) == 0
    found = json.loads(rows.read_text())
    assert [(row["sampler"], row["calls"]) for row in found[:2]] == [("Euler", 2), ("Euler", 3)]
    assert found[2]["calls"] > 6  # a step of Tsit5 takes so many
    assert all(row["fd_fashion"] > row["baseline"] > 0 for row in found)  # a random network draws no clothes
    assert all(0 <= row["recognised"] < 0.6 for row in found)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(found)


def test_a_sampler_makes_the_most_steps_that_its_calls_allow(quality):
    for name, sampler in quality.SAMPLERS.items():
        denoiser = sampler.denoiser(Sure(), CosineTable() if isinstance(sampler, DDIM) else CosinePath())
        for calls in (5, 9, 17):
            steps = quality.steps_for(sampler, denoiser, calls)
            samplers = (dataclasses.replace(sampler, steps=n) for n in (steps, steps + 1))
            used, more = (it.evaluations(denoiser) for it in samplers)
            assert used <= calls < more, name


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--samples", "9"], "samples"),
        (["--calls", "0"], "calls"),
        (["--plot", "nowhere/plot.png"], "plot"),
        (["--json", "nowhere/rows.json"], "json"),
    ],
)
def test_numbers_that_cannot_work_are_refused_before_anything_is_measured(quality, monkeypatch, tmp_path, words, field):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as error:
        quality.main(words)
    assert error.value.field == field


def test_a_network_without_labels_is_refused(quality, exported):
    with pytest.raises(BadInput) as error:
        quality.main(["--run", exported(False)])
    assert error.value.field == "run"
