"""From images in [-1, 1] to what a file holds."""

import numpy as np
import pytest

from umd_eqx.eval.base import batch_rows, evenly_spaced, weighted_mean
from umd_eqx.eval.pictures import GAP, grid, pick, to_rgb8


def test_every_value_comes_back_and_what_is_too_bright_or_dark_is_clipped():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_rgb8(values / 127.5 - 1.0), np.repeat(values, 3, axis=2))
    extreme = np.array([-np.inf, -7.0, -1.0, 1.0, 7.0, np.inf], np.float32).reshape(1, 6, 1)
    assert to_rgb8(extreme)[0, :, 0].tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_channels_become_red_green_and_blue(channels, shown):
    image = np.random.default_rng(0).uniform(-1, 1, (4, 5, channels)).astype(np.float32)
    pixels = to_rgb8(image)
    assert pixels.shape == (4, 5, 3)
    np.testing.assert_allclose(pixels / 127.5 - 1.0, image[..., shown], atol=0.5 / 127)


def test_a_grid_has_white_lines_between_its_images():
    images = np.full((2, 3, 4, 5, 1), -1.0)
    picture = grid([list(row) for row in images])
    assert picture.shape == (2 * 4 + GAP, 3 * 5 + 2 * GAP, 3)
    black = (picture == 0).all(axis=2)
    assert black.sum() == 6 * 20
    assert (picture[~black] == 255).all()
    assert not black[4 : 4 + GAP].any()
    assert not black[:, 5 : 5 + GAP].any()


@pytest.mark.parametrize(("count", "size"), [(4, 10), (10, 10), (99, 10), (1, 10)])
def test_images_are_taken_evenly_from_all_of_a_data_set(count, size):
    indices = evenly_spaced(count, size)
    assert len(indices) == len(set(indices)) == min(count, size)
    assert indices[0] == 0
    assert indices[-1] < size
    assert set(np.diff(indices)) <= {size // len(indices), -(-size // len(indices))}


def test_rows_of_batches_are_the_indices_in_order():
    batches = batch_rows(np.array([3, 5, 7, 11, 13]), 2)
    assert [batch.tolist() for batch in batches] == [[3, 5], [7, 11], [13, 13]]


def test_rows_that_are_not_valid_do_not_weigh():
    values = np.array([[1.0, 10.0], [2.0, 20.0], [np.nan, 1e30]])
    np.testing.assert_array_equal(weighted_mean(values, np.array([True, True, False])), [1.5, 15.0])
    np.testing.assert_array_equal(weighted_mean(values, np.zeros(3, bool)), [np.nan, np.nan])


@pytest.mark.parametrize(("count", "picked"), [(0, []), (1, [1]), (2, [1, 3]), (9, [1, 3])])
def test_only_images_that_are_valid_are_picked(count, picked):
    one = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    found = pick([one, -one], np.array([False, True, False, True]), count)
    assert [(float(a.item()), float(b.item())) for a, b in found] == [(i, -i) for i in picked]
