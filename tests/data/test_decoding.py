"""Decoding of image files, by Pillow and by simplejpeg."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import cmyk, jpeg, noise, slopes
from PIL import Image
from tiny_sets import encode

from umd_eqx.data import decoding
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
def test_a_region_is_that_of_the_pixels(channels):
    for content in (jpeg(noise(31, 44)), encode(noise(31, 44)), cmyk(noise(31, 44)), jpeg(noise(31, 44, 1))):
        image = EncodedImage(content, channels)
        cut = np.asarray(image.picture(region=(3, 5, 20, 30))).reshape(20, 30, channels)
        np.testing.assert_array_equal(cut, image.pixels()[3:23, 5:35])
        np.testing.assert_array_equal(np.asarray(image.picture()).reshape(31, 44, channels), image.pixels())
        np.testing.assert_array_equal(decode_image(content, channels), image.pixels())


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


class Fake:
    """A stand-in for simplejpeg, which knows the header and decodes to a constant, or refuses to."""

    def __init__(self, space, size, refuses=False):
        self.space, self.size, self.refuses = space, size, refuses

    def decode_jpeg_header(self, content):
        return *self.size, self.space, "444"

    def decode_jpeg(self, content, space, fastdct, fastupsample, height, width, factor):
        if self.refuses:
            raise ValueError("corrupt")
        return np.full((*self.size, 1 if space == "GRAY" else 3), 7, np.uint8)


@pytest.mark.parametrize(
    ("fake", "channels", "used"),
    [
        (Fake("YCbCr", (9, 9)), 3, True),
        (Fake("Gray", (9, 9)), 1, True),
        (Fake("YCbCr", (9, 9)), 1, False),  # Pillow's grey is not the luma of the file
        (Fake("CMYK", (9, 9)), 3, False),
        (Fake("YCbCr", (9, 8)), 3, False),  # of another size than Pillow says
        (Fake("YCbCr", (9, 9), refuses=True), 3, False),
    ],
)
def test_simplejpeg_decodes_what_it_decodes_as_pillow_does(monkeypatch, fake, channels, used):
    content = jpeg(noise(9, 9))
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    by_pillow = decode_image(content, channels)
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: fake)
    found = decode_image(content, channels)
    assert found.shape == (9, 9, channels)
    if used:
        assert np.all(found == 7)
    else:
        np.testing.assert_array_equal(found, by_pillow)


def test_simplejpeg_gives_the_pixels_of_pillow_bit_for_bit(monkeypatch):
    pytest.importorskip("simplejpeg")
    rng, by_simplejpeg = np.random.default_rng(0), 0
    for _ in range(300):
        height, width = rng.integers(1, 70, 2).tolist()
        grey = rng.random() < 0.2
        options = {} if grey else {"subsampling": int(rng.integers(3))}
        options |= {"progressive": bool(rng.random() < 0.3), "restart_marker_blocks": int(rng.integers(5))}
        content = jpeg(noise(height, width, 1 if grey else 3), int(rng.integers(5, 100)), **options)
        for channels in (1, 3):
            image = EncodedImage(content, channels)
            for s in (s for s in REDUCTIONS if s <= min(height, width)):
                found = image._by_simplejpeg(s)
                if found is not None:
                    by_pillow = np.asarray(image._by_pillow(s)).reshape(found.shape)
                    np.testing.assert_array_equal(found, by_pillow)
                    by_simplejpeg += 1
    assert by_simplejpeg > 500
