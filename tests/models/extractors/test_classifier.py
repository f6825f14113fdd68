"""The classifier's own layers against their definitions, and what an extractor must be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.models.extractors.base import AbstractExtractor, resize_bilinear
from umd_eqx.models.extractors.classifier import Convolution, FashionClassifier, max_pool


@pytest.fixture(scope="module")
def classifier() -> FashionClassifier:
    """One with random weights, also where fresh ones are 0 or 1."""
    shapes = jax.eval_shape(lambda key: FashionClassifier.init(10, key=key), jax.random.key(0))
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(0.2, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape), jnp.float32)

    return jax.tree.map(fill, shapes)


@pytest.fixture(scope="module")
def images() -> jax.Array:
    """Grey levels."""
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, 28, 28, 1)), jnp.float32)


@pytest.fixture(scope="module")
def activate(classifier):
    """The features and logits of a batch, compiled once."""
    return jax.jit(jax.vmap(classifier))


def test_training_and_comparing_see_the_same_image(classifier, images, activate):
    logits = jax.vmap(classifier.logits)(images / 127.5 - 1.0)
    np.testing.assert_allclose(logits, activate(images).logits, rtol=1e-4, atol=1e-4)


def test_a_convolution_is_a_sum_over_neighbours():
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 4, 2), (3, 3, 2, 5), 5))
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    expected = np.zeros((6, 4, 5))
    for row, column in np.ndindex(6, 4):
        expected[row, column] = np.einsum("ijc,ijco->o", padded[row : row + 3, column : column + 3], kernel) + bias
    convolution = Convolution(jnp.asarray(kernel), jnp.asarray(bias))
    np.testing.assert_allclose(convolution(jnp.asarray(x)), expected, atol=1e-5)


def test_the_largest_of_four_pixels_is_kept():
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    expected = [[x[row : row + 2, column : column + 2].max((0, 1)) for column in (0, 2)] for row in (0, 2, 4)]
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)


def test_it_is_an_extractor_with_features_of_its_last_layer_but_one(classifier, activate, images):
    assert isinstance(classifier, AbstractExtractor)
    assert classifier.name == "fashion"
    features, logits = activate(images)
    assert (features.shape, logits.shape) == ((3, 128), (3, 10))
    assert float(features.min()) >= 0
    assert float(features.max()) > 0
    np.testing.assert_allclose(logits, jax.vmap(classifier.head)(features), rtol=1e-4, atol=1e-4)


def test_the_features_of_an_image_do_not_depend_on_the_others(activate, images):
    alone = activate(jnp.broadcast_to(images[2], images.shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[2], rtol=1e-5, atol=1e-5), alone, activate(images))


def test_every_pixel_counts(classifier, images):
    slopes = jax.jit(jax.grad(lambda image: jnp.sum(classifier(image).features ** 2)))(images[0])
    assert np.count_nonzero(slopes) == 28 * 28


def test_an_image_of_another_size_is_resized(classifier, activate):
    image = jnp.asarray(np.random.default_rng(2).uniform(0, 255, (20, 33, 1)), jnp.float32)
    expected = activate(jnp.broadcast_to(resize_bilinear(image, 28), (3, 28, 28, 1)))
    found = eqx.filter_jit(classifier)(image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-4, atol=1e-4), found, expected)


def test_of_an_image_with_colours_it_sees_the_luma(classifier):
    grey = jax.random.uniform(jax.random.key(0), (28, 28, 1), maxval=255.0)
    coloured = jnp.concatenate([grey, grey, grey], axis=2)
    np.testing.assert_allclose(classifier(coloured).logits, classifier(grey).logits, atol=1e-3)
    green = jnp.concatenate([jnp.zeros_like(grey), grey, jnp.zeros_like(grey)], axis=2)
    np.testing.assert_allclose(classifier(green).logits, classifier(0.587 * grey).logits, atol=1e-3)
    with pytest.raises(ValueError, match="images have 2 channels, but the classifier supports 1 or 3"):
        classifier(coloured[..., :2])
