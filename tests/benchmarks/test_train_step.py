"""The benchmark itself, on a network small enough to test: what it writes is a contract."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import pytest

pytest.importorskip("flax")

FOLDER = Path(__file__).parents[2] / "benchmarks"
CONTRACT = {"system", "ms", "baseline_ms", "ratio", "mfu", "flops", "peak_flops", "temp_bytes", "compile_s"}


@pytest.fixture
def train_step(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_train_step", FOLDER / "train_step.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        spec.loader.exec_module(module)
        yield module


def test_a_row_has_what_was_promised_and_both_sides_the_same_loss(train_step, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    words = ["--systems", "umd", "--variant", "S", "--size", "16", "--batch", "8", "--steps", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *words])
    train_step.main()
    (row,) = json.loads(file.read_text())
    assert row.keys() >= CONTRACT
    assert row["system"] == "umd"
    assert row["ratio"] == pytest.approx(row["ms"] / row["baseline_ms"])
    assert row["loss"] == pytest.approx(row["baseline_loss"], abs=1e-5)
    assert min(row["ms"], row["baseline_ms"], row["temp_bytes"], row["compile_s"]) > 0
    assert "| umd |" in capsys.readouterr().out


def test_networks_that_differ_are_not_compared(train_step, monkeypatch):
    real = train_step.flax_baseline.build

    def another(*arguments):
        baseline = real(*arguments)
        return baseline._replace(loss=lambda *given: baseline.loss(*given) + 1.0)

    monkeypatch.setattr(train_step.flax_baseline, "build", another)
    options = train_step.Options(systems=("mae",), variant="S", size=8, batch=8, steps=1)
    with pytest.raises(SystemExit, match="the networks are not the same"):
        train_step.measure(options, "mae")
