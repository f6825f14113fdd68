"""The boxes of random crops: where they lie, and how large they are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_eqx.data.transforms import (
    Box,
    random_crop_box,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 400), st.integers(8, 400), st.floats(1, 99), st.integers(0, 2**32))
def test_crop_boxes_are_inside_and_large_enough(height, width, area_min, seed):
    rng = np.random.default_rng(seed)
    for _ in range(5):
        top, left, rows, columns = random_crop_box(rng, height, width, area_min)
        assert 0 <= top <= top + rows <= height
        assert 0 <= left <= left + columns <= width
        assert rows * columns >= area_min / 100 * height * width
        if (rows, columns) != (height, width):
            # The aspect ratio was rounded to whole pixels.
            assert (columns - 0.5) / rows <= 1.33 + 1e-9
            assert (columns + 0.5) / rows >= 0.75 - 1e-9


def test_crop_boxes_spread_over_areas_aspects_and_places():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(rng, 500, 500, 20) for _ in range(4000)], float)
    area = boxes[:, 2] * boxes[:, 3] / 500**2
    aspect = boxes[:, 3] / boxes[:, 2]
    assert area.min() < 0.22
    assert area.max() > 0.95
    assert abs(aspect.mean() - (0.75 + 1.33) / 2) < 0.01
    assert abs(np.quantile(aspect, 0.25) - (0.75 + 0.25 * 0.58)) < 0.02
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    assert np.all(abs(centre.mean(0) - 250) < 3)


def test_crop_boxes_never_reach_the_last_row_and_column_as_tensorflows_do_not():
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(rng, 12, 12, 40) for _ in range(4000)]
    smaller = [box for box in boxes if (box.height, box.width) != (12, 12)]
    assert {box.top + box.height for box in smaller if box.height < 12} == set(range(min(b.height for b in boxes), 12))
    assert max(box.left + box.width for box in smaller if box.width < 12) == 11
    assert all(box.top == 0 for box in boxes if box.height == 12)
    # All the other places are as frequent: 9 x 9 has 3 x 3 of them.
    corners = [box[:2] for box in boxes if box[2:] == (9, 9)]
    _, counts = np.unique(corners, axis=0, return_counts=True)
    assert len(counts) == 9
    assert abs(counts - len(corners) / 9).max() < 5 * (len(corners) / 9) ** 0.5


def test_an_image_too_narrow_for_the_crop_is_taken_whole():
    assert random_crop_box(np.random.default_rng(0), 20, 200, 80) == Box(0, 0, 20, 200)
