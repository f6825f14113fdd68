"""The cross-entropy of labelled images in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import Clean
from umd_eqx.core.types import Batch
from umd_eqx.models.extractors.classifier import AbstractClassifier
from umd_eqx.objectives import Classification


class Pixels(AbstractClassifier):
    """Its logits are the first three pixel values, and what is learned is added to them."""

    offset: jax.Array

    def logits(self, image):
        return image.reshape(-1)[:3] + self.offset


def batch_of(rng, count: int = 5) -> tuple[Batch, np.ndarray]:
    """Random images, and the probabilities that `Pixels` gives to their classes."""
    image, label = rng.uniform(-1, 1, (count, 1, 4, 1)), rng.integers(0, 3, count)
    p = np.exp(image.reshape(count, 4)[:, :3])
    batch = Batch(jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32), jnp.ones(count, bool))
    return batch, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_cross_entropy(smoothing):
    batch, p = batch_of(np.random.default_rng(0))
    objective = Classification(smoothing)
    target = (1 - smoothing) * np.eye(3)[batch.label] + smoothing / 3

    def loss(offset):
        return objective(Pixels(offset), Clean(), batch, jax.random.key(0))

    (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(jnp.zeros(3, jnp.float32))
    np.testing.assert_allclose(value, -np.mean(np.sum(target * np.log(p), axis=1)), rtol=1e-5)
    np.testing.assert_allclose(slope, (p - target).mean(axis=0), atol=1e-6)
    assert set(metrics) == {"accuracy"}
    np.testing.assert_allclose(metrics["accuracy"], np.mean(p.argmax(axis=1) == batch.label), rtol=1e-6)


def test_smoothing_is_off_by_default():
    assert Classification() == Classification(0.0)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_outside_of_its_range_is_refused(smoothing):
    with pytest.raises(BadInput, match=r"objective\.label_smoothing: .* is outside \[0, 1\)"):
        Classification(smoothing).validate(1, 8)


def test_it_neither_noises_nor_hides():
    objective = Classification()
    assert (objective.denoises, objective.hides, objective.predicts_visible_x0) == (False, False, False)
