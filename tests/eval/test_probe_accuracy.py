"""The accuracy of a linear probe, with the moments of the training images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Fake, Source, context, noise, pixels

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import Clean
from umd_eqx.eval import ProbeAccuracy
from umd_eqx.eval import linear_probe as module
from umd_eqx.eval.linear_probe import moments
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.probes import VARIANCE_EPS, LinearProbe
from umd_eqx.objectives import LinearProbing

KEY = jax.random.key(0)


@pytest.fixture
def probe() -> LinearProbe:
    kernel = np.random.default_rng(3).normal(0, 1, (64, 4))
    return LinearProbe(Fake(), Linear(jnp.asarray(kernel, jnp.float32), jnp.zeros(4, jnp.float32)), "class_tokens")


def accuracy(probe: LinearProbe, train: np.ndarray, test: np.ndarray, labels: np.ndarray) -> float:
    x = (test - train.mean(axis=0)) / np.sqrt(train.var(axis=0) + VARIANCE_EPS)
    return 100 * float(np.mean((x @ np.asarray(probe.head.kernel, np.float64)).argmax(axis=1) == labels))


def flat(source: Source, indices=slice(None)) -> np.ndarray:
    return pixels(source, indices).reshape(-1, 64)


@pytest.fixture
def data() -> tuple[Source, Source]:
    """Training images that are darker than the test images, which distinguishes their moments."""
    train, test = noise(50, seed=1), noise(40, seed=2)
    train.images = train.images // 3
    return train, test


@pytest.mark.parametrize(("devices", "at_once"), [(1, 7), (8, 16_384)])
def test_features_are_normalised_by_the_moments_of_the_training_images(probe, data, devices, at_once, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    train, test = data
    found, _ = ProbeAccuracy().build(context(train, test, devices=devices))(probe, KEY)
    labels = test.labels(np.arange(40))
    truth = accuracy(probe, flat(train), flat(test), labels)
    assert found == {"top1": pytest.approx(truth)}
    assert truth != accuracy(probe, flat(test), flat(test), labels)  # the moments of the test images give another


def test_fewer_images_are_spread_over_their_splits(probe, data):
    train, test = data
    found, _ = ProbeAccuracy(train_images=5, images=20).build(context(train, test))(probe, KEY)
    some = slice(None, None, 2)
    truth = accuracy(probe, flat(train, slice(None, None, 10)), flat(test, some), test.labels(np.arange(40))[some])
    assert found == {"top1": pytest.approx(truth)}


def test_images_that_cannot_be_read_do_not_count(probe, data):
    train, test = data
    train.broken, test.broken = (0, 49), (3,)
    found, _ = ProbeAccuracy().build(context(train, test))(probe, KEY)
    kept = np.delete(np.arange(40), 3)
    truth = accuracy(probe, flat(train, slice(1, 49)), flat(test, kept), test.labels(kept))
    assert found == {"top1": pytest.approx(truth)}


def test_images_are_noised_as_in_training(probe, data):
    given = dataclasses.replace(context(*data), objective=LinearProbing(1.0))
    clean, _ = ProbeAccuracy().build(context(*data))(probe, KEY)
    noised, _ = ProbeAccuracy().build(given)(probe, KEY)
    assert noised != clean
    assert abs(noised["top1"] - 25.0) < 25.0  # pure noise: near chance
    assert ProbeAccuracy().build(dataclasses.replace(given, path=Clean()))(probe, KEY).scalars == clean


def test_moments_are_exact_far_from_zero():
    x = 1e4 + np.random.default_rng(0).normal(size=(1000, 3))
    mean, variance = moments(iter([x[:1], x[1:1], x[1:300], x[300:]]))
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(variance, x.var(axis=0), rtol=1e-8)
    with pytest.raises(ValueError, match="no image"):
        moments(iter([]))


@pytest.mark.parametrize("name", ["images", "train_images"])
def test_a_number_of_images_below_one_is_refused(name):
    with pytest.raises(BadInput, match=rf"eval\.probe\.{name}: 0 is not valid"):
        ProbeAccuracy(**{name: 0}).validate()


def test_it_states_the_programs_that_it_compiles(probe, data):
    (program,) = ProbeAccuracy().programs(probe, context(*data)).values()
    assert program.memory().total > 0
