"""The bytes in which an image is stored: those of its file where possible, or a lossless PNG of its downsampled pixels.

As in TFDS's `imagenet2012`, the EXIF orientation is ignored, greyscale JPEGs are kept, and a CMYK JPEG, or an image of
another format in a file named .JPEG, becomes an RGB JPEG of quality 100 with chroma subsampling.
"""

import io
import re
import warnings
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from umd_eqx.data.folders import one_line
from umd_eqx.data.records import to_pixels
from umd_eqx.data.transforms import adm_crop, box_resize

Resize = Literal["box", "adm"]
RESIZES = {"box": box_resize, "adm": adm_crop}
"""How images are downsampled to a square, by name."""

_KEPT = {"JPEG": ("L", "RGB"), "MPO": ("L", "RGB"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA")}
"""The modes of the files of each format that are stored as they are; MPO is a JPEG followed by other pictures."""


class Unreadable(ValueError):
    """An image that cannot be stored. The message says why, and is the same wherever the image lies."""


class Stored(NamedTuple):
    """An encoded image; `converted` is its original format if that is not "JPEG" or "PNG" as it was, otherwise None."""

    content: bytes
    converted: str | None


def stored(
    image: bytes | UInt8[np.ndarray, "h w c"], name: str, channels: int, size: int | None, resize: Resize
) -> Stored:
    """Returns an image as it is stored. It is decoded as a whole, so that truncated files are found.

    **Arguments:** the encoded image or its pixels; the name of its file; 1 or 3 channels; the side of the square that
    it is downsampled to by `resize`, or None to keep its size.

    **Raises:** `Unreadable` for an image that cannot be decoded, or is too large (a decompression bomb).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, which are not used
            if size is not None:
                return Stored(_png(RESIZES[resize](to_pixels(image, channels), size)), None)
            return Stored(_png(image), None) if isinstance(image, np.ndarray) else _whole(image, name, channels)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("it is not an image") from error
    except Exception as error:  # the decoders of Pillow raise various types
        raise Unreadable(re.sub(r"<[^>]* at 0x\w+>", "it", one_line(error))) from error


def _whole(content: bytes, name: str, channels: int) -> Stored:
    """Returns an encoded image with its original size."""
    with Image.open(io.BytesIO(content)) as image:
        kind, mode = str(image.format), image.mode
        named_jpeg = name.lower().endswith((".jpg", ".jpeg"))
        if mode in _KEPT.get(kind, ()) and (kind != "PNG" or not named_jpeg):
            image.draft(None, (1, 1))  # a JPEG is read as a whole, but at an eighth of its size
            image.load()
            return Stored(content, None)
    pixels = to_pixels(content, channels)
    return Stored(_jpeg(pixels) if named_jpeg else _png(pixels), f"{mode} {kind}")


def _picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _jpeg(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, format="JPEG", quality=100, subsampling="4:2:0")
    return buffer.getvalue()
