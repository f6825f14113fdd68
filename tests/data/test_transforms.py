import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_eqx.data.transforms import (
    ADMTransform,
    Box,
    EvalTransform,
    FewShotTransform,
    TrainTransform,
    center_crop,
    crop_resize,
    resize_smaller_side,
    to_unit_range,
)

sides = st.integers(1, 50)
channels = st.sampled_from([1, 3])
quick = settings(max_examples=40, deadline=None)


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def photograph(height, width, channels=3, seed=0):
    """Noise whose power falls with the square of the frequency, as that of photographs does."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(channels, height, width))) / frequency
    waves = np.fft.ifft2(spectrum).real
    return np.clip(128 + 50 * waves / waves.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def levels(images):
    """What a transform gives in [-1, 1], as pixel values 0 .. 255."""
    return (np.asarray(images, np.float64) + 1) * 127.5


def bilinear(image, height, width):
    """TensorFlow's `tf.image.resize(method="bilinear", antialias=False)`, by its definition and in float64.

    Half-pixel centres: pixel i of n is at (i + 0.5) old / n - 0.5, and what lies outside of the outermost centres has
    the value of the edge.
    """
    result = image.astype(np.float64)
    for axis, size in ((0, height), (1, width)):
        old = result.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, old - 1)
        result = np.take(result, low, axis) * (1 - share) + np.take(result, high, axis) * share
    return result


def filtered(image, height, width, kernel):
    """A resize with antialiasing, by its definition and in float64.

    A pixel is the mean of the old ones weighted by a kernel around its place, in units of a pixel of the smaller
    image; what would lie outside of the image has no weight.
    """

    def weights(size, old):
        scale = old / size
        distance = np.arange(old) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale
        weight = kernel(np.abs(distance) / max(scale, 1))
        return weight / weight.sum(axis=1, keepdims=True)

    rows, columns = weights(height, image.shape[0]), weights(width, image.shape[1])
    return np.einsum("yi,ijc,xj->yxc", rows, image.astype(np.float64), columns, optimize=True)


def triangle(image, height, width):
    """TensorFlow's `tf.image.resize(method="bilinear", antialias=True)`."""
    return filtered(image, height, width, lambda x: np.maximum(0, 1 - x))


def bicubic(image, height, width):
    """Pillow's `resize` with BICUBIC: Keys' kernel with a = -0.5."""

    def kernel(x):
        return np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))

    return filtered(image, height, width, kernel)


def the_middle(image, size):
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


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
    assert abs(max(resized.shape[:2]) - exact) <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (375, 500, 64, (64, 85)),
        (500, 375, 256, (341, 256)),
        (128, 129, 64, (64, 64)),  # 64.5 to the even number
        (128, 131, 64, (64, 66)),  # 65.5, too
        (702, 252, 259, (722, 259)),  # 721.5, which float32 computes exactly and float64 does not
        (1315, 10, 89, (11703, 89)),  # 11703.5, which float32 falls short of
    ],
)
def test_the_larger_side_is_rounded_as_the_reference_does(height, width, size, expected):
    assert resize_smaller_side(noise(height, width, 1), size, antialias=False).shape[:2] == expected


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width", "size"), [(375, 500, 64), (500, 375, 256), (60, 45, 64), (333, 217, 66)])
def test_resizes_drop_the_fraction_as_tensorflow_does(height, width, size, antialias):
    image = photograph(height, width)
    resized = resize_smaller_side(image, size, antialias).astype(np.float64)
    exact = (triangle if antialias else bilinear)(image, *resized.shape[:2])
    np.testing.assert_allclose(resized, np.floor(exact), atol=1)
    assert np.mean(resized != np.floor(exact)) < 0.01  # whole numbers, which float32 may miss by a rounding
    assert abs(np.mean(exact - resized) - 0.5) < 0.03  # rounded to the nearest, it would be 0


def test_a_constant_image_stays_constant():
    for value in (1, 77, 254, 255):
        image = np.full((375, 500, 3), value, np.uint8)
        for transform in (EvalTransform(64), FewShotTransform(64), ADMTransform(64)):
            np.testing.assert_allclose(levels(transform(image)), value, atol=1e-4)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (333, 500), (257, 256)])
def test_evaluation_is_the_references_to_one_pixel_value(height, width, size):
    # Smaller side to size, bilinear without antialiasing, centre crop: big_vision's resize_small and central_crop.
    image = photograph(height, width)
    smaller = min(height, width)
    rounded = [round(side * size / smaller) for side in (height, width)]
    reference = np.floor(the_middle(bilinear(image, *rounded), size))
    ours = levels(EvalTransform(size)(image))
    np.testing.assert_allclose(ours, reference, atol=1.001)
    assert abs(np.mean(ours - reference)) < 0.01
    if smaller >= 4 * size:
        # Fine detail is what antialiasing would take away.
        assert np.abs(ours - the_middle(triangle(image, *rounded), size)).std() > 3


def test_few_shot_images_are_the_references_to_one_pixel_value():
    for size, height, width in ((64, 375, 500), (256, 500, 375), (28, 32, 40)):
        image = photograph(height, width)
        larger = int(size * 256 / 246)
        rounded = [round(side * larger / min(height, width)) for side in (height, width)]
        reference = np.floor(the_middle(triangle(image, *rounded), size))
        ours = levels(FewShotTransform(size)(image))
        np.testing.assert_allclose(ours, reference, atol=1.001)
        assert abs(np.mean(ours - reference)) < 0.01


def test_adm_halves_by_averages_and_then_resizes_bicubically():
    def halved(image):  # Pillow goes along the rows and then along the columns, and rounds after each
        image = np.floor((image[:, ::2].astype(float) + image[:, 1::2] + 1) / 2)
        return np.floor((image[::2] + image[1::2] + 1) / 2)

    image = photograph(384, 512)
    quarter = halved(halved(image))  # while the smaller side is at least twice the 80 pixels that are asked for
    expected = np.clip(bicubic(quarter, 80, 107), 0, 255)[:, 13:93]
    ours = levels(ADMTransform(80)(image))
    np.testing.assert_allclose(ours, expected, atol=1.15)  # a rounding after each of two passes
    assert abs(np.mean(ours - expected)) < 0.01
    assert np.abs(ours - levels(EvalTransform(80)(image))).std() > 3  # which is another resize
    np.testing.assert_allclose(levels(ADMTransform(96)(image)), quarter[:, 16:112], atol=1e-4)  # nothing is left to do


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
    with pytest.raises(ValueError, match="cannot crop"):
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
        ADMTransform(size)(image),
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
    np.testing.assert_array_equal(ADMTransform(size)(image), to_unit_range(image))


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


@pytest.mark.parametrize(("height", "width"), [(10, 20), (40, 24), (30, 30)])
def test_at_100_percent_training_has_the_geometry_of_the_evaluation(height, width):
    image = noise(height, width, 1)
    evaluated = EvalTransform(5)(image)
    np.testing.assert_array_equal(TrainTransform(5, 100, flip=False)(image, np.random.default_rng(0)), evaluated)
    mirrored = {np.array_equal(TrainTransform(5, 100)(image, np.random.default_rng(i)), evaluated) for i in range(20)}
    assert mirrored == {True, False}
    either = [evaluated, evaluated[:, ::-1]]
    for seed in range(20):
        result = TrainTransform(5, 100)(image, np.random.default_rng(seed))
        assert any(np.array_equal(result, one) for one in either)


def test_few_shot_crops_the_middle_of_a_larger_image():
    image = noise(64, 64, 3)
    larger = resize_smaller_side(image, 66, antialias=True)  # int(64 * 256 / 246)
    np.testing.assert_array_equal(FewShotTransform(64)(image), to_unit_range(larger[1:65, 1:65]))
    with pytest.raises(ValueError, match="not 64 x 64"):
        FewShotTransform(64, native=True)(noise(64, 65, 3))


@pytest.mark.parametrize("image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1))])
def test_what_is_no_picture_is_refused(image):
    # With the shape checks of the tests a wrong dtype or rank does not even get there.
    with pytest.raises((ValueError, TypeError), match=r"an image must be uint8|Type-check error"):
        resize_smaller_side(image, 8, antialias=True)
