"""Decoding of image files, at their size and reduced."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import cmyk, jpeg, noise, slopes
from PIL import Image
from tiny_sets import encode

from umd_eqx.data.decoding import REDUCTIONS, EncodedImage, decode_image


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduced_pixel_is_the_mean_of_those_that_it_stands_for(reduction):
    image = slopes(160, 96)
    reduced = EncodedImage(jpeg(image, subsampling=0), 3).pixels(reduction)
    means = image.reshape(160 // reduction, reduction, 96 // reduction, reduction, 3).mean((1, 3))
    assert reduced.shape == means.shape
    np.testing.assert_allclose(reduced, means, atol=4)
    assert np.abs(reduced - means).mean() < 1.5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]))
def test_sides_are_rounded_up(height, width, channels):
    image = EncodedImage(jpeg(noise(height, width, channels)), channels)
    assert (image.height, image.width) == (height, width)
    for s in REDUCTIONS:
        if s > min(height, width):
            with pytest.raises(ValueError, match=f"cannot be reduced by {s}"):
                image.pixels(s)
        else:
            assert image.pixels(s).shape == (-(-height // s), -(-width // s), channels)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 100), st.integers(1, 100))
def test_the_reduction_is_the_largest_that_leaves_enough(height, width, rows, columns):
    chosen = EncodedImage(jpeg(noise(8, 8)), 3).reduction(height, width, rows, columns)
    enough = [s for s in REDUCTIONS if height / s >= rows and width / s >= columns]
    assert chosen == max(enough, default=1)


def test_other_formats_are_decoded_whole():
    pixels = noise(40, 40)
    image = EncodedImage(encode(pixels), 3)
    assert image.reduction(40, 40, 5, 5) == 1
    np.testing.assert_array_equal(image.pixels(), pixels)
    with pytest.raises(ValueError, match="cannot be reduced by 2"):
        image.pixels(2)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_converted_to_the_channels_asked_for(channels):
    for content in (jpeg(noise(31, 44)), encode(noise(31, 44)), cmyk(noise(31, 44)), jpeg(noise(31, 44, 1))):
        image = EncodedImage(content, channels)
        mode = "L" if channels == 1 else "RGB"
        assert image.picture().mode == mode
        with Image.open(io.BytesIO(content)) as picture:
            expected = np.asarray(picture.convert(mode)).reshape(31, 44, channels)
        for _ in range(2):  # also when it was decoded before
            np.testing.assert_array_equal(image.pixels(), expected)
        np.testing.assert_array_equal(decode_image(content, channels), expected)


def test_of_several_pictures_in_a_file_the_first_is_decoded():
    first, second = (Image.fromarray(slopes(64, 48)), Image.fromarray(noise(64, 48)))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    image = EncodedImage(buffer.getvalue(), 3)
    assert image.reduction(64, 48, 16, 12) == 4
    np.testing.assert_allclose(image.pixels(4), slopes(64, 48).reshape(16, 4, 12, 4, 3).mean((1, 3)), atol=5)


def test_a_file_cut_short_is_refused_at_any_size():
    content = jpeg(noise(64, 64))
    for s in REDUCTIONS:
        with pytest.raises(OSError, match="truncated"):
            EncodedImage(content[:-600], 3).pixels(s)
    with pytest.raises(OSError, match="cannot identify"):
        EncodedImage(b"\xff\xd8\xff nothing", 3)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for content in (jpeg(noise(60, 60)), encode(noise(60, 60))):
        with pytest.raises(Image.DecompressionBombError, match="3600 pixels"):
            EncodedImage(content, 3)
