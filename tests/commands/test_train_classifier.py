"""`experiments/train_classifier.py`: a run like every other, and a file with a card at its end."""

import json
import shlex

import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import on_one_device

from umd_eqx.commands.train_classifier import train_classifier
from umd_eqx.models.extractors.fashion import load_fashion_classifier, read_card

# By the names that the flags had before the training was a run like every other.
QUICK = (
    *("--train-split", "train[:640]", "--test-split", "test[:300]", "--batch-size", "32", "--steps", "12"),
    *("--area_min", "80", "--no-flip", "--lr=0.001", "--warmup", "0.1", "--weight-decay", "0.1", "--seed", "1"),
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)


def test_a_short_training_is_copied_to_its_place_and_made_again_by_its_card(called, here):
    code, out, error = called(train_classifier, "--out", "a.safetensors", *QUICK)
    assert (code, error) == (0, "")
    assert "copied to a.safetensors, a.json" in out
    card = read_card("a.safetensors", "--out")
    assert card["recipe"] == {
        **{"steps": 12, "seed": 1, "batch_size": 32, "lr": 0.001, "warmup": 0.1},
        **{"weight_decay": 0.1, "area_min": 80, "flip": False},
    }
    load_fashion_classifier("a.safetensors")
    (run_dir,) = (here / "runs").iterdir()
    assert run_dir.name.startswith("classifier,")
    assert {"metrics.jsonl", "report.html", "checkpoints", "config.json"} <= {path.name for path in run_dir.iterdir()}

    # The same command again does not write over the file; without it, it finds that the run is finished.
    code, _, error = called(train_classifier, "--out", "a.safetensors", *QUICK)
    assert (code, error) == (2, "error: --out: a.safetensors already exists. Choose another name, or delete it\n")
    code, out, _ = called(train_classifier, "--out", "b.safetensors", *QUICK)
    assert (code, "is finished" in out) == (0, True)
    assert (here / "b.safetensors").read_bytes() == (here / "a.safetensors").read_bytes()

    words = shlex.split(card["command"])
    assert words[:2] == ["python", "experiments/train_classifier.py"]
    code, _, _ = called(train_classifier, "--run-dir", "again", *words[2:])
    assert code == 0
    assert json.loads((here / "again" / "fashion_classifier.json").read_text()) == card


def test_a_dry_run_trains_nothing_and_writes_nothing(called, here):
    code, out, _ = called(train_classifier, "--out", "a.safetensors", "--batch-size", "8", "--dry-run")
    assert code == 0
    assert "421,642" in out
    assert not list(here.iterdir())


def test_the_help_names_the_flags(called):
    code, out, _ = called(train_classifier, "--help")
    assert code == 0
    for flag in (
        "--optim.steps",
        "--data.area-min",
        "--ema.rate",
        "--seed INT",
        "--out",
        "--weight-decay",
        "* classifier",
    ):
        assert flag in out


def test_a_typo_is_told_with_the_nearest_flag(called):
    code, _, error = called(train_classifier, "--optim.stepz", "3")
    assert code == 2
    assert "--optim.stepz" in error
    assert "--optim.steps" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "0"), "--optim.steps: 0 is not positive"),
        (("--lr", "nan"), "--optim.lr: nan is not positive"),
        (("--warmup", "1"), "--optim.warmup: 1.0 is outside [0, 1)"),
        (("--area-min", "0"), "--data.area-min: 0"),
        (("--batch-size", "0"), "--data.batch-size: 0 is too small"),
        (("--weight-decay", "-1"), "--optim.weight-decay: -1.0 is negative"),
        (("--seed", "-1"), "--seed: -1 is outside"),
        (
            ("--trainable.frozen", "heads"),
            "--trainable.frozen: no parameter's name begins with 'heads'. Did you mean head?",
        ),
        (("--out", "weights.npz"), "--out: weights.npz does not end in .safetensors"),
        (("--out", "nowhere/a.safetensors"), "--out: there is no folder nowhere"),
        (("--train-split", "training"), "--data.train-split: 'training' is not a split"),
        (("--test-split", "test[:0]"), "--data.test-split: 'test[:0]' has no images"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(called, here, words, said):
    code, out, error = called(train_classifier, *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    assert not list(here.iterdir())


def test_a_card_is_not_written_over_either(called, here):
    (here / "a.json").write_text("mine")
    code, _, error = called(train_classifier, "--out", "a.safetensors", *QUICK)
    assert code == 2
    assert "a.json already exists" in error
    assert (here / "a.json").read_text() == "mine"
