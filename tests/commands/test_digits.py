"""Every measurement of a representation on scikit-learn's digits, which the package does not know."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from data.digits import digits, write_digits
from data.own_images import KINDS
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import numbers, on_one_device, tiny

from umd_eqx.commands.cli import main
from umd_eqx.commands.evaluate import evaluate
from umd_eqx.commands.linear_probe import linear_probe
from umd_eqx.commands.supervised import supervised
from umd_eqx.data.loader import batch_at
from umd_eqx.data.source_configs import Images
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.eval import FewShot
from umd_eqx.recipes.config import Config

FEWSHOT = FewShot(every=100, seeds=2, features=("both",))


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """The digits as each kind of data."""
    folder = tmp_path_factory.mktemp("digits")
    return {kind: write_digits(folder, kind) for kind in KINDS}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)


def test_the_same_digits_give_the_same_batches_from_every_kind(roots):
    expected, *others = (Images(str(root)) for root in roots.values())
    assert expected.describe("train", "test")[1:] == (1617, 180, 8, 8, 1, 10)
    labels = [label for _, label in digits()]
    found = np.concatenate([expected.open(split).labels(np.arange(n)) for split, n in (("train", 1617), ("test", 180))])
    assert np.bincount(found).tolist() == np.bincount(labels).tolist()
    for other in others:
        assert other.digest() == expected.digest()
        for split in ("train", "test"):
            for step in (0, 30):
                ours, theirs = (
                    batch_at(source.open(split), TrainTransform(8), batch_size=64, seed=1, step=step)
                    for source in (expected, other)
                )
                np.testing.assert_array_equal(ours.image, theirs.image)
                np.testing.assert_array_equal(ours.label, theirs.label)


def recipe() -> Config:
    sizes = {"data__size": 8, "data__batch_size": 32, "data__eval_batch_size": 128, "model__variant": "mu/2"}
    plain = {"data__area_min": 100.0, "data__flip": False, "data__expected": None}
    config = tiny(**sizes, **plain, optim__steps=100, log__every=50, checkpoint__every=100)
    return dataclasses.replace(config, eval={"fewshot": FEWSHOT})


@pytest.fixture(scope="module")
def run(roots, tmp_path_factory) -> Path:
    """A run on tars."""
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        with pytest.raises(SystemExit) as end:
            main({"digits": recipe}, ["--run-dir", str(run_dir), "--data.dir", str(roots["tars"])])
    assert end.value.code in (0, None)
    return run_dir


def test_the_probe_of_a_run_is_repeated_on_another_kind_and_shown_in_its_report(called, roots, run):
    last = numbers(run)[-1]
    assert last["eval/fewshot/both/top1"] > last["eval/untrained/fewshot/both/top1"] > 10.0
    words = ("--benchmark", "probe", "--run", str(run), "--data.dir", str(roots["parquet"]))
    code, out, error = called(evaluate, *words, "--json", "probe.json")
    assert (code, error) == (0, "")
    (result,) = json.loads(Path("probe.json").read_text())
    measured = {name: value for name, value in result["metrics"].items() if "-shot/" not in name}
    assert measured == {
        name.removeprefix("eval/fewshot/"): value for name, value in last.items() if name.startswith("eval/fewshot/")
    }
    assert "10-shot/both/top1" in result["metrics"]
    assert f"python experiments/linear_probe.py --run {run}" in out
    assert "<h2>Benchmarks</h2>" in (run / "report.html").read_text()


def test_transfer_to_the_run_s_own_data_has_the_numbers_of_its_probe(called, roots, run):
    words = ("--benchmark", "transfer", "--run", str(run), "--data.dir", str(roots["npz"].parent), "--sets", "digits")
    code, _, error = called(evaluate, *words, "--json", "transfer.json")
    assert (code, error) == (0, "")
    (result,) = json.loads(Path("transfer.json").read_text())
    assert result["metrics"]["digits/100-shot/both"] == numbers(run)[-1]["eval/fewshot/both/top1"]
    assert result["metrics"]["digits/10-shot/both"] < result["metrics"]["digits/100-shot/both"]
    assert result["recipe"]["model"]["variant"] == "mu/2"
    page = (run / "report.html").read_text()
    assert "Transfer: top-1 in percent of a ridge probe, mean ± standard deviation over 2 draws" in page
    assert '<th scope="row">digits</th>' in page


def test_a_linear_probe_is_at_least_as_good_as_the_ridge_probe(called, roots, run):
    words = ("linear-probe-fashion", "--run", str(run), "--run-dir", "probed", "--data.dir", str(roots["folder"]))
    steps = ("--optim.steps", "200", "--optim.lr", "50", "--eval.probe.every", "200", "--log.every", "50")
    code, out, error = called(linear_probe, *words, *steps)
    assert (code, error) == (0, ""), out
    rows = numbers(Path("probed"))
    assert rows[-1]["eval/probe/top1"] >= numbers(run)[-1]["eval/fewshot/both/top1"] > 50.0


def test_a_classifier_is_trained_from_scratch(called, roots):
    words = ("fashion", "--run-dir", "supervised", "--data.dir", str(roots["parquet"]), "--data.size", "8")
    small = ("--model.network.variant", "mu/2", "--data.no-flip", "--data.area-min", "100", "--log.every", "50")
    code, out, error = called(supervised, *words, *small, "--optim.steps", "100", "--eval.accuracy.every", "100")
    assert (code, error) == (0, ""), out
    assert numbers(Path("supervised"))[-1]["eval/accuracy/recognised"] > 0.6
