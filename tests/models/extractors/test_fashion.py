"""The classifier that comes with the package: as good as its card says, and nothing else passes for it."""

import hashlib
import json
import pickle
import shutil

import jax
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import Clean
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.data.source import open_source
from umd_eqx.eval import Accuracy, EvalContext
from umd_eqx.models.extractors.fashion import (
    SHIPPED,
    card_of,
    command_of,
    load_fashion_classifier,
    read_card,
    recipe_facts,
    save_fashion_classifier,
)
from umd_eqx.recipes.classifier import classifier
from umd_eqx.recipes.dump import dump, flags_of


@pytest.fixture(scope="module")
def shipped():
    """The trained classifier."""
    return load_fashion_classifier()


@pytest.fixture
def copy(tmp_path):
    """A copy of the weights and their card, to be spoilt."""
    for path in (SHIPPED, card_of(SHIPPED)):
        shutil.copy(path, tmp_path)
    return tmp_path / SHIPPED.name


def test_the_files_are_small_and_the_card_is_that_of_the_command(shipped):
    assert SHIPPED.stat().st_size < 2_000_000
    card = read_card()
    assert card["recipe"] == recipe_facts(dump(classifier()))
    flags = flags_of(classifier(), classifier())
    assert card["command"] == command_of("classifier", flags) == "python experiments/train_classifier.py"
    assert card["data"] == {"name": "fashion_mnist", "train": "train", "test": "test", "test_images": 10_000}
    assert card["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(shipped))
    assert card["test_accuracy"] >= 0.92


def test_it_recognises_what_its_card_says(shipped):
    # Another machine may round the odd image to the other side.
    test = open_source("fashion_mnist", None, "test")
    context = EvalContext(test, test, Clean(), 28, 250, make_mesh(jax.devices()[:1]))
    found = Accuracy().build(context)(shipped, jax.random.key(0)).scalars["recognised"]
    assert found == pytest.approx(read_card()["test_accuracy"], abs=3e-4)


def test_what_is_saved_is_loaded_bit_for_bit(shipped, tmp_path):
    path = tmp_path / "own.safetensors"
    card = save_fashion_classifier(shipped, path, {"note": "mine"})
    assert card == tmp_path / "own.json"
    assert path.read_bytes() == SHIPPED.read_bytes()
    assert (read_card(path)["note"], read_card(path)["sha256"]) == ("mine", read_card()["sha256"])
    jax.tree.map(np.testing.assert_array_equal, load_fashion_classifier(path), shipped)


def rewritten(path, change) -> None:
    # With a card that fits, so that the arrays themselves are what is looked at.
    tensors, _ = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card_of(path).write_text(json.dumps({"sha256": digest}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("head.bias"), "lacks head.bias"),
        (lambda tensors: tensors.update(more=np.zeros(1, np.float32)), "has an unexpected array more"),
        (
            lambda tensors: tensors.update({"head.bias": np.zeros(11, np.float32)}),
            r"has head.bias of shape \(11,\) instead of \(10,\)",
        ),
        (lambda tensors: tensors.update({"head.bias": np.zeros(10, np.float64)}), "has head.bias as float64"),
        (lambda tensors: tensors["head.bias"].fill(np.nan), "not finite"),
    ],
)
def test_an_array_that_does_not_fit_is_named(copy, change, said):
    rewritten(copy, change)
    with pytest.raises(BadInput, match=said):
        load_fashion_classifier(copy)


def test_weights_and_card_belong_together(copy):
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(BadInput, match="not the file that its card describes"):
        load_fashion_classifier(copy)
    for text in ("{", "[]", '{"sha256": 3}'):
        card_of(copy).write_text(text)
        with pytest.raises(BadInput, match="cannot be read"):
            load_fashion_classifier(copy)
    card_of(copy).unlink()
    with pytest.raises(BadInput, match=r"no card beside it\. Put fashion_classifier\.json"):
        load_fashion_classifier(copy)


class Dangerous:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was executed",))


def test_a_pickle_is_not_executed(copy):
    copy.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(BadInput, match=r"mine: .* is not a readable safetensors file"):
        load_fashion_classifier(copy, "mine")
