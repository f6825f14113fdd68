"""`experiments/train_classifier.py`: it learns, says what it made, and leaves what is there alone."""

import json
import re
import shlex

import pytest

from umd_eqx.commands.train_classifier import train
from umd_eqx.data.source import open_source
from umd_eqx.models.fashion import load_fashion_classifier
from umd_eqx.supervised import accuracy

QUICK = ("--train-split", "train[:1280]", "--test-split", "test[:500]", "--batch-size", "32", "--steps", "30")


def test_a_short_training_learns_and_is_made_again_by_its_card(called, here):
    code, out, error = called(train, "--out", "a.safetensors", *QUICK)
    assert (code, error) == (0, "")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", out)]
    assert losses[0] > 2  # log 10 is 2.3
    assert losses[-1] < 0.8 * losses[0]
    card = json.loads((here / "a.json").read_text())
    # Chance is 0.1 and its standard deviation 0.013.
    assert card["test_accuracy"] > 0.3
    assert f"{card['test_accuracy']:.2%} of 500 test images recognised" in out
    loaded = load_fashion_classifier("a.safetensors")
    assert accuracy(loaded, open_source("fashion_mnist", None, "test[:500]")) == card["test_accuracy"]
    assert (card["recipe"]["steps"], card["recipe"]["batch_size"]) == (30, 32)

    # The same command again does not write over it; under another name it makes the same weights.
    code, _, error = called(train, "--out", "a.safetensors", *QUICK)
    assert (code, error) == (2, "error: --out: a.safetensors exists already. Choose another name, or delete it\n")
    words = shlex.split(card["command"])
    assert words[:2] == ["python", "experiments/train_classifier.py"]
    code, _, _ = called(train, "--out", "b.safetensors", *words[2:])
    assert code == 0
    again = json.loads((here / "b.json").read_text())
    assert again == card


def test_the_help_names_the_flags(called):
    code, out, _ = called(train, "--help")
    assert code == 0
    for flag in ("--steps INT", "--seed INT", "--lr FLOAT", "--out STR"):
        assert flag in out


def test_a_typo_is_told_with_the_nearest_flag(called):
    code, _, error = called(train, "--stepz", "3")
    assert code == 2
    assert "--stepz" in error
    assert "--steps" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "0"), "--steps: 0 is not positive"),
        (("--out", "weights.npz"), "--out: weights.npz is no name for weights"),
        (("--out", "nowhere/a.safetensors"), "--out: there is no folder nowhere"),
        (("--train-split", "training"), "--train-split: 'training' is no split"),
        (("--test-split", "test[:0]"), "--test-split: 'test[:0]' has no images"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(called, here, words, said):
    code, out, error = called(train, *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    assert not list(here.iterdir())


def test_a_card_is_not_written_over_either(called, here):
    (here / "a.json").write_text("mine")
    code, _, error = called(train, "--out", "a.safetensors", *QUICK)
    assert code == 2
    assert "a.json exists already" in error
    assert (here / "a.json").read_text() == "mine"
