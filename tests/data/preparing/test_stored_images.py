"""The bytes in which images are stored."""

import io
import struct
import zlib

import numpy as np
import pytest
from imagenet_trees import picture
from PIL import Image

from umd_eqx.data.decoding import decode_image
from umd_eqx.data.preparing.encoding import Unreadable, stored
from umd_eqx.data.transforms import ADMTransform


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_jpegs_are_stored_as_they_are():
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (picture(1), picture(2, "L"), picture(3, exif=exif), picture(4, progressive=True)):
        assert stored(data, "a.JPEG", 3, None, "box") == (data, None)
    png = picture(5, format="PNG")
    assert stored(png, "a.png", 3, None, "box") == (png, None)


def test_cmyk_and_png_named_jpeg_become_rgb_jpegs_of_the_same_pixels():
    for data, what in ((picture(1, "CMYK"), "CMYK JPEG"), (picture(2, format="PNG"), "RGB PNG")):
        content, converted = stored(data, "n01440764_1.JPEG", 3, None, "box")
        assert converted == what
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        difference = pixels(content).astype(float) - decode_image(data, 3)
        assert np.abs(difference).mean() < 2.0  # quality 100


def test_other_formats_become_lossless_pngs():
    data = picture(1, format="BMP")
    content, converted = stored(data, "a.bmp", 3, None, "box")
    assert converted == "RGB BMP"
    np.testing.assert_array_equal(pixels(content), pixels(data))
    grey = np.arange(42, dtype=np.uint8).reshape(6, 7, 1)
    content, converted = stored(grey, "0", 1, None, "box")
    assert converted is None
    np.testing.assert_array_equal(pixels(content), grey[..., 0])


def test_box_averages_the_whole_image_and_adm_crops_its_centre():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (96, 64, 3), np.uint8)
    box = pixels(stored(image, "0", 3, 32, "box").content)
    # Each pixel is the mean of a box of 3 x 2, as Pillow rounds it: first over columns, then over rows.
    columns = np.floor(image.reshape(96, 32, 2, 3).mean(axis=2) + 0.5)
    rows = np.floor(columns.reshape(32, 3, 32, 3).mean(axis=1) + 0.5)
    np.testing.assert_allclose(box, rows, atol=1)
    adm = pixels(stored(image, "0", 3, 32, "adm").content)
    np.testing.assert_array_equal(adm, np.rint((ADMTransform(32)(image) + 1) * 127.5))
    # Of an image of twice the side, ADM keeps the box averages of the centre.
    centre = np.floor(image[16:80].reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)) + 0.5)
    np.testing.assert_allclose(adm, centre, atol=1)
    assert adm.shape == box.shape == (32, 32, 3)


@pytest.mark.parametrize("size", [None, 16])
def test_truncated_images_are_found_wherever_they_are_cut(size):
    data = picture(7, progressive=False)
    for left in (len(data) // 4, len(data) // 2, len(data) - 60):
        with pytest.raises(Unreadable):
            stored(data[:left], "a.JPEG", 3, size, "box")
    stored(data, "a.JPEG", 3, size, "box")


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_what_is_no_image_is_told_the_same_way_each_time():
    for data, said in ((b"hello", "it is not an image"), (b"", "it is not an image"), (bomb(), "decompression bomb")):
        problems = set()
        for _ in range(2):
            with pytest.raises(Unreadable, match=said) as error:
                stored(data, "a.JPEG", 3, None, "box")
            problems.add(str(error.value))
        assert len(problems) == 1
