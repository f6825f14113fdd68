"""The linear probe's loss and gradient in closed form, and what one batch has one mean and variance of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Fake

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.types import Batch, Representation
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.probes import VARIANCE_EPS, LinearProbe
from umd_eqx.objectives import LinearProbing

CLASSES, PATH = 5, CosineTable()


class Timed(Fake):
    """Represents an image by functions of its pixels and of the network time."""

    def represent(self, x, cond) -> Representation:
        first = jnp.sin(3.0 * x.reshape(-1) + cond.t)
        return Representation(first[:30], first[30:60] ** 2)


def batch_of(count: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    image, label = rng.uniform(-1, 1, (count, 8, 8, 3)), rng.integers(0, CLASSES, count)
    return Batch(jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32), jnp.ones(count, bool))


@pytest.fixture
def probe() -> LinearProbe:
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(0, 0.2, (60, CLASSES)), rng.normal(0, 0.2, CLASSES)
    head = Linear(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))
    return LinearProbe(Timed(image_shape=(8, 8, 3)), head, "both")


def expected(probe: LinearProbe, images: np.ndarray, labels: np.ndarray, t: float = 0.0) -> tuple:
    """Loss, gradient of kernel and bias, and accuracy in float64, from the network's representation of each image."""
    model = probe.backbone
    cond = model.cond().at(jnp.asarray(t, jnp.float32))
    found = eqx.filter_jit(jax.vmap(lambda image: model.represent(image, cond)))(jnp.asarray(images))
    x = np.concatenate([found.class_tokens, found.patches], axis=1).astype(np.float64)
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + VARIANCE_EPS)
    p = np.exp(x @ np.asarray(probe.head.kernel, np.float64) + np.asarray(probe.head.bias, np.float64))
    p /= p.sum(axis=1, keepdims=True)
    y = np.eye(CLASSES)[labels]
    slope = (p - y) / len(x)
    loss = -np.mean(np.sum(y * np.log(p), axis=1))
    return loss, x.T @ slope, slope.sum(axis=0), np.mean(p.argmax(axis=1) == labels)


def found_by(objective: LinearProbing, probe: LinearProbe, batch: Batch, key=0) -> tuple:
    def loss(head: Linear):
        model = LinearProbe(probe.backbone, head, probe.features)
        return objective(model, PATH, batch, jax.random.key(key))

    (value, metrics), grad = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(probe.head)
    assert set(metrics) == {"accuracy"}
    return value, grad.kernel, grad.bias, metrics["accuracy"]


def test_loss_and_gradient_are_those_of_softmax_regression_on_normalised_features(probe):
    batch = batch_of(24)
    for value, truth in zip(
        found_by(LinearProbing(), probe, batch), expected(probe, batch.image, batch.label), strict=True
    ):
        np.testing.assert_allclose(value, truth, rtol=1e-4, atol=2e-6)


def test_images_are_noised_to_the_given_time(probe):
    batch, objective = batch_of(8), LinearProbing(0.3)
    eps = objective.draw(jax.random.key(7), probe, PATH, batch.image.shape)
    t = jnp.asarray(0.3, jnp.float32)
    noised = jax.vmap(lambda x0, e: PATH.interpolate(x0, e, t))(batch.image, eps)
    truth = expected(probe, noised, batch.label, float(PATH.network_time(t)))
    np.testing.assert_allclose(found_by(objective, probe, batch, 7)[0], truth[0], rtol=1e-4)
    assert abs(truth[0] - expected(probe, batch.image, batch.label)[0]) > 1e-2
    assert LinearProbing().draw(jax.random.key(7), probe, PATH, batch.image.shape) is None


@pytest.mark.parametrize(("time", "batch_size", "field"), [(-0.1, 8, "objective.time"), (0.0, 1, "data.batch_size")])
def test_what_cannot_be_normalised_or_noised_is_refused(time, batch_size, field):
    with pytest.raises(BadInput) as error:
        LinearProbing(time).validate(1, batch_size)
    assert error.value.field == field
