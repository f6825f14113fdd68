"""Resizing before a feature extractor."""

import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.models.extractors.base import resize_bilinear


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 23), (8, 6, 3), (4, 4, 4), (1, 3, 6)])
def test_is_linear_between_the_centres_of_pixels(height, width, side):
    image = np.random.default_rng(0).uniform(0, 255, (height, width, 2)).astype(np.float32)

    def along(line: np.ndarray) -> np.ndarray:
        # numpy's interpolation repeats the ends and has no antialiasing.
        centres = (np.arange(side) + 0.5) * len(line) / side - 0.5
        return np.interp(centres, np.arange(len(line)), line)

    expected = np.apply_along_axis(along, 1, np.apply_along_axis(along, 0, image))
    np.testing.assert_allclose(resize_bilinear(jnp.asarray(image), side), expected, atol=1e-3)
