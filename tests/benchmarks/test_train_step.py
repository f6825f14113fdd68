"""The benchmark of the training step, on a small network: its JSON output is a stable interface."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import pytest

pytest.importorskip("flax")

FOLDER = Path(__file__).parents[2] / "benchmarks"
CONTRACT = {"system", "ms", "baseline_ms", "ratio", "mfu", "flops", "peak_flops", "temp_bytes", "compile_s"}
TORCH_CONTRACT = {"torch_ms", "torch_ratio", "torch_mfu", "torch_loss", "torch_threads"}


@pytest.fixture
def train_step(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_train_step", FOLDER / "train_step.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        spec.loader.exec_module(module)
        yield module


SMALL = ("--systems", "umd", "--variant", "S", "--size", "16", "--batch", "8", "--steps", "1")


def test_a_row_has_what_was_promised_and_all_implementations_the_same_loss(train_step, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(train_step, "has_torch", lambda: False)
    assert train_step.main([*SMALL, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert row.keys() >= CONTRACT
    assert not row.keys() & TORCH_CONTRACT
    assert row["system"] == "umd"
    assert row["ratio"] == pytest.approx(row["ms"] / row["baseline_ms"])
    assert row["loss"] == pytest.approx(row["baseline_loss"], abs=1e-5)
    assert min(row["ms"], row["baseline_ms"], row["temp_bytes"], row["compile_s"]) > 0
    printed = capsys.readouterr()
    assert "| umd |" in printed.out
    assert "PyTorch" not in printed.out
    assert printed.err == 'PyTorch is not installed; its columns are omitted: pip install -e ".[parity]"\n'


def test_pytorch_has_columns_where_it_is_installed(train_step, tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    # Threads of PyTorch that wait for each other on a busy machine are many times slower than one.
    one_thread = lambda: torch.set_num_threads(1) or 1  # noqa: E731
    monkeypatch.setattr(importlib.import_module("torch_weights"), "use_all_cores", one_thread)
    for compiled in ("our_implementation", "flax_implementation"):  # these are timed in the test above
        monkeypatch.setattr(train_step, compiled, lambda *_: train_step.Implementation(lambda: 0.0, 1.0, 1, 1))
    file, threads = tmp_path / "rows.json", torch.get_num_threads()
    try:
        assert train_step.main([*SMALL, "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    (row,) = json.loads(file.read_text())
    assert row.keys() >= CONTRACT | TORCH_CONTRACT
    assert row["torch_ratio"] == pytest.approx(row["ms"] / row["torch_ms"])
    assert row["torch_loss"] == pytest.approx(row["loss"], abs=1e-5)
    assert row["torch_ms"] > 0
    printed = capsys.readouterr().out
    assert "| PyTorch ms | PyTorch ratio |" in printed
    assert "threads of PyTorch: 1" in printed


def test_a_pytorch_network_that_differs_is_not_compared(train_step, monkeypatch):
    monkeypatch.setattr(train_step, "torch_implementation", lambda *_: (None, {"torch_loss": 0.0, "torch_threads": 1}))
    options = train_step.Options(systems=("mae",), variant="S", size=8, batch=8, steps=1, torch=True)
    with pytest.raises(SystemExit, match=r"theirs 0\.0: the networks differ"):
        train_step.measure(options, "mae")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps: 0 is too small. Use 1 or more"),
        (["--batch", "1"], "objective.no_noise_prob: 0.5 of a batch of 1 is less than one image"),
        (["--size", "10"], "a patch size of 4 does not divide an image of 10 x 10 pixels"),
        (["--json", "/nowhere/rows.json"], "json: there is no folder /nowhere"),
        (["--torch"], 'torch: PyTorch is not installed. Run pip install -e ".[parity]", or omit the flag'),
    ],
)
def test_bad_input_is_named(train_step, monkeypatch, words, message):
    monkeypatch.setattr(train_step, "has_torch", lambda: False)
    with pytest.raises(train_step.BadInput) as caught:
        train_step.main(["--systems", "umd", *words])
    assert message in str(caught.value)


def test_networks_that_differ_are_not_compared(train_step, monkeypatch):
    real = train_step.flax_baseline.build

    def another(*arguments):
        baseline = real(*arguments)
        return baseline._replace(loss=lambda *given: baseline.loss(*given) + 1.0)

    monkeypatch.setattr(train_step.flax_baseline, "build", another)
    options = train_step.Options(systems=("mae",), variant="S", size=8, batch=8, steps=1, torch=False)
    with pytest.raises(SystemExit, match="the networks differ"):
        train_step.measure(options, "mae")
