"""Mixup and CutMix: how much of each image and of each label is used, and of which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import Clean
from umd_eqx.core.sharding import micro_batches
from umd_eqx.core.types import Batch
from umd_eqx.models.extractors.classifier import AbstractClassifier
from umd_eqx.objectives import Classification
from umd_eqx.objectives.mixing import draw_mixing, mix

SHAPE = (4000, 8, 12, 1)


class Pixels(AbstractClassifier):
    """Its logits are the first three pixel values."""

    def logits(self, image):
        return image.reshape(-1)[:3]


class Noisy(Pixels):
    """In training its logits are random."""

    def training_logits(self, image, key):
        return self.logits(image) + jax.random.normal(key, (3,))


def test_an_image_is_mixed_with_its_neighbour_and_the_neighbour_with_it():
    values, own = np.array([[1.0], [3.0], [10.0], [20.0]]), np.array([[0.75], [1.0], [0.0], [0.1]])
    np.testing.assert_allclose(mix(jnp.asarray(values), jnp.asarray(own)), [[1.5], [3.0], [20.0], [11.0]], rtol=1e-6)


def test_mixup_blends_whole_images_by_a_share_of_its_beta_distribution():
    own, pixels = draw_mixing(jax.random.key(0), SHAPE, 0.2, 0.0)
    assert np.array_equal(pixels, np.broadcast_to(np.asarray(own)[:, None, None], SHAPE[:3]))
    np.testing.assert_allclose(np.mean(own), 0.5, atol=0.03)
    np.testing.assert_allclose(np.var(own), 0.25 / 1.4, atol=0.01)  # Beta(a, a): 1 / (4 (2 a + 1))


def test_cutmix_replaces_a_box_and_the_share_of_the_label_is_that_of_the_pixels():
    own, pixels = (np.asarray(x) for x in draw_mixing(jax.random.key(1), (1000, 64, 96, 1), 0.0, 1.0))
    assert set(np.unique(pixels)) == {0.0, 1.0}
    np.testing.assert_allclose(own, pixels.mean(axis=(1, 2)), atol=1e-6)
    hidden = 1 - pixels
    rows, columns = hidden.max(axis=2), hidden.max(axis=1)
    assert np.array_equal(hidden, rows[:, :, None] * columns[:, None, :])  # one box
    for line in (rows, columns):
        assert (np.abs(np.diff(line, axis=1)).sum(axis=1) <= 2).all()  # without gaps
    # The area of the box is uniform before it is clipped, which leaves s (1 - s / 4) of a side s on average.
    s = np.sqrt(np.random.default_rng(0).uniform(size=100_000))
    np.testing.assert_allclose(1 - own.mean(), np.mean((s * (1 - s / 4)) ** 2), atol=0.03)
    assert own.std() > 0.15


def test_with_both_half_of_the_images_are_mixed_in_each_way():
    own, pixels = (np.asarray(x) for x in draw_mixing(jax.random.key(2), SHAPE, 0.8, 1.0))
    blended = (pixels == own[:, None, None]).all(axis=(1, 2)) & (own > 0) & (own < 1)
    np.testing.assert_allclose(blended.mean(), 0.5, atol=0.03)


def test_the_loss_is_that_of_the_mixed_images_with_the_mixed_labels():
    rng, objective = np.random.default_rng(0), Classification(label_smoothing=0.1, mixup=0.3, cutmix=1.0)
    image, label = rng.uniform(-1, 1, (6, 4, 4, 1)), rng.integers(0, 3, 6)
    batch = Batch(jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32), jnp.ones(6, bool))
    draw = objective.draw(jax.random.key(3), Pixels(), Clean(), image.shape)
    value, metrics = objective.loss(Pixels(), Clean(), batch, draw)
    other = np.array([1, 0, 3, 2, 5, 4])
    share, own = np.asarray(draw.mixing.pixels)[..., None], np.asarray(draw.mixing.own)[:, None]
    x = (share * image + (1 - share) * image[other]).reshape(6, -1)[:, :3]
    y = own * np.eye(3)[label] + (1 - own) * np.eye(3)[label[other]]
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(value, -np.mean(np.sum((0.9 * y + 0.1 / 3) * log_p, axis=1)), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(x.argmax(axis=1) == y.argmax(axis=1)), rtol=1e-6)

    # In micro-batches of whole pairs, the mean of the losses is that of the batch.
    assert objective.period(6) == 2
    cut = micro_batches((batch, draw), 3, objective.period(6))
    parts = [objective.loss(Pixels(), Clean(), *jax.tree.map(lambda leaf, i=i: leaf[i], cut))[0] for i in range(3)]
    np.testing.assert_allclose(np.mean(parts), value, rtol=1e-5)


def test_a_network_that_is_random_in_training_has_a_key_for_each_image():
    batch = Batch(jnp.zeros((64, 2, 2, 1), jnp.float32), jnp.zeros(64, jnp.int32), jnp.ones(64, bool))
    draw = Classification().draw(jax.random.key(0), Noisy(), Clean(), batch.image.shape)
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(draw.keys)).tolist()}) == 64
    assert draw.mixing is None
    value, metrics = Classification().loss(Noisy(), Clean(), batch, draw)
    assert abs(value - np.log(3)) > 0.1  # the loss of equal logits
    assert 0.1 < metrics["accuracy"] < 0.6


@pytest.mark.parametrize(
    ("objective", "batch_size", "field"),
    [
        (Classification(mixup=-0.1), 8, "objective.mixup"),
        (Classification(cutmix=float("nan")), 8, "objective.cutmix"),
        (Classification(mixup=0.2), 7, "data.batch_size"),
    ],
)
def test_what_cannot_be_mixed_is_refused(objective, batch_size, field):
    with pytest.raises(BadInput) as error:
        objective.validate(1, batch_size)
    assert error.value.field == field
    Classification().validate(1, 7)
