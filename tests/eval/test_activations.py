"""Features of many images: padding, batches and devices must not be seen in them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.sharding import make_mesh
from umd_eqx.eval import activations as module
from umd_eqx.eval.activations import activations
from umd_eqx.eval.distances import statistics_of
from umd_eqx.models.extractors.base import AbstractExtractor, Activations


class Tiny(AbstractExtractor):
    """Two linear maps of the pixels."""

    weights: jax.Array
    name: str = eqx.field(static=True, default="tiny")

    def __call__(self, image) -> Activations:
        features = image.reshape(-1) @ self.weights + 1.0  # of a padded image they are not 0
        return Activations(features, features[:3] / 10.0)


TINY = Tiny(jnp.asarray(np.random.default_rng(0).normal(size=(12, 5)) / 100, jnp.float32))
IMAGES = np.random.default_rng(1).integers(0, 256, (37, 2, 2, 3), np.uint8)
ONE, ALL = make_mesh(jax.devices()[:1]), make_mesh()


def expected() -> tuple[np.ndarray, np.ndarray]:
    features = IMAGES.reshape(37, -1).astype(np.float64) @ np.asarray(TINY.weights, np.float64) + 1.0
    logits = np.exp(features[:, :3] / 10.0)
    return features, logits / logits.sum(axis=1, keepdims=True)


# Batches that divide 37 and that do not, more than the images, less than the devices; arrays that fit none of them.
@pytest.mark.parametrize(
    ("mesh", "batch_size", "cuts"),
    [(ALL, 8, [5, 30]), (ALL, 3, []), (ONE, 8, [1, 1, 20]), (ALL, 64, [36]), (ONE, 37, [])],
)
def test_of_every_image_once_and_in_order(mesh, batch_size, cuts):
    said: list[int] = []
    found = activations(TINY, np.split(IMAGES, cuts), mesh, said.append, batch_size=batch_size)
    features, probabilities = expected()
    np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-4)
    assert found.features.dtype == found.probabilities.dtype == np.float32
    exact = statistics_of(found.features)
    assert found.statistics.count == 37
    np.testing.assert_allclose(found.statistics.mean, exact.mean, rtol=1e-13)
    np.testing.assert_allclose(found.statistics.covariance, exact.covariance, rtol=1e-10, atol=1e-13)
    size = -(-batch_size // mesh.size) * mesh.size
    assert said == [*range(size, 37, size), 37]


def test_statistics_are_of_all_rows_though_few_are_kept(monkeypatch):
    whole = activations(TINY, [IMAGES], ALL, batch_size=8)
    monkeypatch.setattr(module, "_BLOCK", 10)  # several blocks are merged
    for keep in (0, 11, 16, 100):
        found = activations(TINY, [IMAGES], ALL, batch_size=8, keep=keep)
        np.testing.assert_array_equal(found.features, whole.features[:keep])
        np.testing.assert_array_equal(found.probabilities, whole.probabilities[:keep])
        assert found.statistics.count == 37
        np.testing.assert_allclose(found.statistics.covariance, whole.statistics.covariance, rtol=1e-10, atol=1e-13)


def test_images_are_taken_as_they_are_needed():
    taken: list[int] = []
    done_when_taken: list[int] = []
    done = [0]

    def images():
        for i in range(6):
            taken.append(i)
            done_when_taken.append(done[0])
            yield IMAGES[:8]

    activations(TINY, images(), ALL, lambda count: done.__setitem__(0, count), batch_size=8)
    assert taken == list(range(6))
    assert done_when_taken == [0, 0, 8, 16, 24, 32]  # one batch ahead, no more


def test_no_images_are_refused():
    for images in ([], [IMAGES[:0]]):
        with pytest.raises(ValueError, match="no images"):
            activations(TINY, images, ALL)


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="images of different shapes"):
        activations(TINY, [IMAGES[:8], IMAGES[:8, :, :1]], ALL, batch_size=8)
