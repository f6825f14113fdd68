"""The share of test images that a classifier recognises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Source, context, noise
from known_tokenizers import Rearranged

from umd_eqx.core.errors import BadInput
from umd_eqx.core.programs import abstract, is_shape
from umd_eqx.eval import Accuracy
from umd_eqx.eval import accuracy as module
from umd_eqx.models.extractors.classifier import AbstractClassifier

KEY = jax.random.key(0)


class Brightest(AbstractClassifier):
    """Takes the brightest of the first three pixels for the class."""

    def logits(self, image):
        return image.reshape(-1)[:3]


def bright(count: int, wrong: int, broken=()) -> Source:
    """Images with one bright pixel among the first three, labelled by it but for the last `wrong` images."""
    images, labels = np.zeros((count, 8, 8, 1), np.uint8), np.arange(count) % 3
    images[np.arange(count), 0, labels] = 200
    labels[count - wrong :] = (labels[count - wrong :] + 1) % 3
    return Source(images, labels, 3, broken)


def recognised(source: Source, images: int | None = None, **fields) -> float:
    scalars, pictures = Accuracy(images=images).build(context(source, source, **fields))(Brightest(), KEY)
    assert (set(scalars), pictures) == ({"recognised"}, {})
    return scalars["recognised"]


@pytest.mark.parametrize(("batch_size", "devices"), [(2, 1), (7, 1), (16, 8)])
def test_each_image_counts_once(batch_size, devices):
    # What fills up the last batch does not count.
    assert recognised(bright(7, 2), batch_size=batch_size, devices=devices) == pytest.approx(5 / 7)


def test_an_image_that_cannot_be_read_does_not_count():
    assert recognised(bright(8, 2, broken=(0, 7)), devices=1, batch_size=4) == pytest.approx(5 / 6)


def test_fewer_images_are_spread_over_the_split():
    # 0, 2 and 4 of six, of which the last two are labelled otherwise.
    assert recognised(bright(6, 2), 3, devices=1, batch_size=4) == pytest.approx(2 / 3)


@pytest.mark.parametrize("images", [0, -1])
def test_a_number_of_images_below_one_is_refused(images):
    with pytest.raises(BadInput, match=r"eval\.accuracy\.images: .* Use 1 or more"):
        Accuracy(images=images).validate()


@pytest.mark.parametrize("tokenizer", [None, Rearranged.init()], ids=["pixels", "latents"])
def test_the_program_that_it_states_is_the_one_that_it_compiles(tokenizer, monkeypatch):
    source, called = noise(20, classes=3), []
    given = dataclasses.replace(context(source, source, batch_size=8), tokenizer=tokenizer)
    original = module._recognised

    def recorded(*arguments):
        called.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module, "_recognised", recorded)
    (stated,) = Accuracy().programs(Brightest(), dataclasses.replace(given, tokenizer=abstract(tokenizer))).values()
    Accuracy().build(given)(Brightest(), KEY)
    assert stated.function is recorded

    def shapes(arguments):
        return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract(arguments)) if is_shape(leaf)]

    assert shapes(stated.arguments) == shapes(called[0])
    assert stated.memory().total > 0
    assert jnp.ndim(original(*called[0])) == 1
