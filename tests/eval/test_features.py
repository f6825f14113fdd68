"""Pixels as features: small images as they are, large ones as averages over boxes."""

import tracemalloc

import jax
import numpy as np
import pytest
from eval.fakes import Fake, context, noise

from umd_eqx.eval import FewShot
from umd_eqx.eval.features import box_average, flat_pixels

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [64, 48])
def test_a_box_average_is_the_mean_of_the_pixels_in_each_box(size):
    images = RNG.uniform(-1, 1, (3, size, size, 2)).astype(np.float32)
    found = np.asarray(box_average(images, 16))
    box = size // 16
    np.testing.assert_allclose(found, images.reshape(3, 16, box, 16, box, 2).mean(axis=(2, 4)), atol=1e-6)


def test_a_box_average_counts_a_pixel_by_its_area_in_the_box():
    # Three boxes of 4/3 pixels: a pixel and a third of the next.
    row = np.array([0.0, 3.0, 6.0, 9.0], np.float32)
    found = np.asarray(box_average(np.broadcast_to(row, (1, 4, 4))[..., None], 3))
    np.testing.assert_allclose(found[0, 0, :, 0], [0.75, 4.5, 8.25], rtol=1e-6)


def test_large_images_are_probed_at_a_smaller_side_and_named_so():
    train, test = noise(24, size=64), noise(12, size=64, seed=1)
    large = Fake(0.5, image_shape=(64, 64, 1))
    probe = FewShot(shots=2, seeds=1, knn=1, l2=None, features=("patches",))
    scalars = probe.build(context(train, test))(large, KEY).scalars
    assert {name.split("/")[0] for name in scalars} == {"patches", "raw_pixels_32px"}
    rows = flat_pixels(context(train, test), "train", np.arange(24))
    boxes = train.images.reshape(24, 32, 2, 32, 2).mean(axis=(2, 4)) / 127.5 - 1.0
    np.testing.assert_allclose(rows, boxes.reshape(24, -1), atol=1e-5)


def test_images_that_are_small_are_features_as_they_are():
    source = noise(20, size=28)
    rows = flat_pixels(context(source, source), "train", np.arange(20))
    np.testing.assert_array_equal(rows, (source.images.astype(np.float32) / 127.5 - 1.0).reshape(20, -1))


def test_large_images_are_never_held_together():
    source = noise(64, size=256)
    tracemalloc.start()
    flat_pixels(context(source, source, batch_size=8, devices=1), "train", np.arange(64))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64 * 256 * 256 * 4  # of all in float32
