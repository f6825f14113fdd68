import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_eqx.data.transforms import (
    Box,
    EvalTransform,
    FewShotTransform,
    TrainTransform,
    center_crop,
    crop_resize,
    random_crop_box,
    resize_smaller_side,
    to_unit_range,
)

sides = st.integers(1, 50)
channels = st.sampled_from([1, 3])
quick = settings(max_examples=40, deadline=None)


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def bilinear(image, height, width):
    """Bilinear with half-pixel centres and continued edges, in float64."""
    result = image.astype(np.float64)
    for axis, size in ((0, height), (1, width)):
        old = result.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, old - 1)
        result = np.take(result, low, axis) * (1 - share) + np.take(result, high, axis) * share
    return result


@quick
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


def test_an_image_too_narrow_for_the_crop_is_taken_whole():
    assert random_crop_box(np.random.default_rng(0), 20, 200, 80) == Box(0, 0, 20, 200)


@quick
@given(sides, sides, channels, sides)
def test_crop_resize_is_bilinear_without_antialiasing(height, width, channels, size):
    image = noise(height, width, channels)
    box = Box(height // 3, width // 4, height - height // 3, width - width // 4)
    cut = image[box.top :, box.left :]
    resized = crop_resize(image, box, size)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized, bilinear(cut, size, size), atol=1)


def test_crop_resize_reads_nothing_outside_of_its_box():
    image = np.zeros((10, 10, 1), np.uint8)
    image[3:7, 2:6] = 200
    assert np.all(crop_resize(image, Box(3, 2, 4, 4), 9) == 200)


@quick
@given(sides, sides, channels, sides, st.booleans())
def test_resize_smaller_side(height, width, channels, size, antialias):
    resized = resize_smaller_side(noise(height, width, channels), size, antialias)
    assert min(resized.shape[:2]) == size
    assert resized.shape[2] == channels
    exact = max(height, width) * size / min(height, width)
    assert abs(max(resized.shape[:2]) - exact) <= 0.5


def test_antialiasing_keeps_the_mean_where_plain_bilinear_does_not():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::8] = 240  # mean 30, and never looked at when every eighth pixel pair is read
    assert abs(resize_smaller_side(stripes, 8, antialias=True).mean() - 30) < 2
    assert resize_smaller_side(stripes, 8, antialias=False).mean() == 0


@quick
@given(sides, sides, channels)
def test_center_crop(height, width, channels):
    image = noise(height, width, channels)
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    np.testing.assert_array_equal(center_crop(image, size), image[top : top + size, left : left + size])
    with pytest.raises(ValueError, match="cannot cut"):
        center_crop(image, size + 1)


def test_to_unit_range():
    unit = to_unit_range(np.arange(256, dtype=np.uint8)[:, None, None])
    assert unit.dtype == np.float32
    assert unit[0] == -1
    assert unit[-1] == 1
    np.testing.assert_allclose(unit[:, 0, 0], np.arange(256) / 127.5 - 1, atol=1e-7)


@quick
@given(sides, sides, channels, st.integers(1, 40), st.floats(1, 100), st.booleans(), st.integers(0, 2**32))
def test_every_transform_gives_the_size_type_and_range(height, width, channels, size, area_min, flip, seed):
    image = noise(height, width, channels)
    train = TrainTransform(size, area_min, flip)
    results = [
        train(image, np.random.default_rng(seed)),
        EvalTransform(size)(image),
        FewShotTransform(size)(image),
    ]
    for result in results:
        assert result.shape == (size, size, channels)
        assert result.dtype == np.float32
        assert result.min() >= -1
        assert result.max() <= 1
    np.testing.assert_array_equal(results[0], train(image, np.random.default_rng(seed)))


@quick
@given(sides, channels, st.integers(0, 2**32))
def test_images_of_the_right_size_stay_as_they_are(size, channels, seed):
    image = noise(size, size, channels, seed)
    rng = np.random.default_rng(seed)
    np.testing.assert_array_equal(TrainTransform(size, 100, flip=False)(image, rng), to_unit_range(image))
    np.testing.assert_array_equal(EvalTransform(size)(image), to_unit_range(image))
    np.testing.assert_array_equal(FewShotTransform(size, native=True)(image), to_unit_range(image))


def test_a_flip_mirrors_one_image_in_two():
    image = noise(6, 6, 3)
    transform, rng = TrainTransform(6, 100), np.random.default_rng(0)
    flipped = 0
    for _ in range(400):
        result = transform(image, rng)
        mirrored = np.array_equal(result, to_unit_range(image[:, ::-1]))
        assert mirrored or np.array_equal(result, to_unit_range(image))
        flipped += mirrored
    assert abs(flipped - 200) < 5 * math.sqrt(100)


def test_at_100_percent_the_whole_image_is_taken():
    image = noise(10, 20, 1)
    result = TrainTransform(5, 100, flip=False)(image, np.random.default_rng(0))
    np.testing.assert_array_equal(result, to_unit_range(crop_resize(image, Box(0, 0, 10, 20), 5)))


def test_few_shot_crops_the_middle_of_a_larger_image():
    image = noise(64, 64, 3)
    larger = resize_smaller_side(image, 66, antialias=True)  # int(64 * 256 / 246)
    np.testing.assert_array_equal(FewShotTransform(64)(image), to_unit_range(larger[1:65, 1:65]))
    with pytest.raises(ValueError, match="not 64 x 64"):
        FewShotTransform(64, native=True)(noise(64, 65, 3))


@pytest.mark.parametrize("image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1))])
def test_what_is_no_picture_is_refused(image):
    # With the shape checks of the tests a wrong dtype or rank does not even get there.
    with pytest.raises((ValueError, TypeError), match=r"an image is uint8|Type-check error"):
        resize_smaller_side(image, 8, antialias=True)
