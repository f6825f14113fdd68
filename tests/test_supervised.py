"""The objective in closed form, and what a recipe refuses; that it learns: tests/commands/test_train_classifier.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.errors import BadInput
from umd_eqx.models.extractor import AbstractExtractor, Activations
from umd_eqx.supervised import ClassifierRecipe, accuracy, objective, train_classifier
from umd_eqx.types import Batch, DataSpec


class Pixels(AbstractExtractor):
    """Its logits are the first three pixels, in hundreds of grey levels, and what is learnt is added to them."""

    offset: jax.Array
    name: str = "pixels"

    def __call__(self, image):
        pixels = image.reshape(-1)
        return Activations(pixels, pixels[:3] / 100.0 + self.offset)


class Three:
    """Images of 28 x 28 with one bright pixel among the first three, labelled by it, but for the last image."""

    spec = DataSpec("three", 7, 7, 28, 28, 1, 3)

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int):
        image = np.zeros((28, 28, 1), np.uint8)
        image[0, index % 3] = 200
        return {"image": image, "label": index % 3 if index < 6 else 2}

    def labels(self, indices):
        return np.array([self[int(i)]["label"] for i in indices])


def test_the_objective_is_the_cross_entropy_of_grey_levels():
    rng = np.random.default_rng(0)
    levels, label = rng.uniform(0, 255, (5, 1, 4, 1)), rng.integers(0, 3, 5)
    batch = Batch(jnp.asarray(levels / 127.5 - 1, jnp.float32), jnp.asarray(label, jnp.int32), jnp.ones(5, bool))
    logits = levels.reshape(5, 4)[:, :3] / 100
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss, metrics = objective(Pixels(jnp.zeros(3)), batch)
    np.testing.assert_allclose(loss, -np.log(p[np.arange(5), label]).mean(), rtol=1e-5)
    assert float(metrics["loss"]) == float(loss)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(logits.argmax(axis=1) == label), rtol=1e-6)
    # The gradient of each image is p - onehot.
    slope = jax.grad(lambda offset: objective(Pixels(offset), batch)[0])(jnp.zeros(3))
    np.testing.assert_allclose(slope, (p - np.eye(3)[label]).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 7, 10])
def test_accuracy_counts_each_image_once(batch_size):
    # What fills up the last batch does not count: it would have label 0 and be taken for 0.
    assert accuracy(Pixels(jnp.zeros(3)), Three(), batch_size=batch_size) == pytest.approx(6 / 7)


def test_images_with_colours_are_refused():
    source = Three()
    source.spec = source.spec._replace(channels=3)
    with pytest.raises(BadInput, match="three has 3 channels"):
        train_classifier(ClassifierRecipe(steps=1), source)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", (0, -1)),
        ("batch_size", (0,)),
        ("lr", (0.0, -1.0, float("nan"), float("inf"))),
        ("warmup", (-0.1, 1.0, float("nan"))),
        ("weight_decay", (-1.0, float("inf"), float("nan"))),
        ("area_min", (0.0, 101.0, float("nan"))),
        ("seed", (-1, 2**32)),
    ],
)
def test_a_recipe_that_cannot_work_names_its_flag(field, values):
    ClassifierRecipe().validate()
    for value in values:
        with pytest.raises(BadInput, match=f"--{field.replace('_', '-')}: "):
            dataclasses.replace(ClassifierRecipe(), **{field: value}).validate()
