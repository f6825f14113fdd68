"""The benchmark of the samplers, on a small network: its JSON output is a stable interface."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import GaussianOracle

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosinePath

FILE = Path(__file__).parents[2] / "benchmarks" / "sampling.py"
CONTRACT = {"sampler", "ms", "scan_ms", "ratio", "evaluations", "evaluations_per_s", "forward_ratio"}
TINY = ["--variant", "mu/4", "--size", "8", "--batch", "2", "--steps", "4", "--rounds", "1"]


@pytest.fixture
def sampling(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_sampling", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        spec.loader.exec_module(module)
        yield module


# Before the next one, which lets go of all that is compiled.
def test_loops_that_differ_are_not_compared(sampling, monkeypatch):
    real = sampling.by_hand
    monkeypatch.setattr(sampling, "by_hand", lambda *arguments: real(*arguments) + 0.1)
    options = sampling.Options(variant="mu/4", size=8, batch=2, steps=4, rounds=1)
    with pytest.raises(SystemExit, match="the images of sampler and loop differ"):
        sampling.measure(options, "ddim")


def test_a_row_has_what_was_promised(sampling, tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert sampling.main([*TINY, "--samplers", "heun", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert row.keys() >= CONTRACT
    assert (row["sampler"], row["evaluations"]) == ("heun", 7)
    assert row["ratio"] == pytest.approx(row["ms"] / row["scan_ms"])
    assert row["evaluations_per_s"] == pytest.approx(7 * 2 / row["ms"] * 1e3)
    assert row["forward_ratio"] == pytest.approx(row["ms"] / 7 / row["forward_ms"])
    assert min(row["ms"], row["scan_ms"], row["forward_ms"]) > 0
    assert "| heun |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ddim", "ancestral", "euler", "dpmpp"])
def test_the_loop_by_hand_makes_the_same_image(sampling, name):
    sampler, path = sampling.sampler_of(name, 6), CosinePath()
    model = GaussianOracle.random(path, (2, 2, 1))
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 1)), jnp.float32)
    arguments = (sampler.denoiser(model, path), noise, jax.random.key(0))
    np.testing.assert_allclose(sampler(*arguments), sampling.by_hand(sampler, *arguments), atol=1e-4)


def test_the_least_time_leaves_out_the_first_round(sampling, monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.2])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))
    assert sampling.min_ms({"one": lambda: 0}, rounds=2) == {"one": pytest.approx(200.0)}


@pytest.mark.parametrize("words", [["--batch", "0"], ["--rounds", "0"], ["--steps", "1"]])
def test_numbers_that_cannot_work_are_refused(sampling, words):
    with pytest.raises(BadInput) as error:
        sampling.main(words)
    assert f"--{error.value.field}" == words[0]
