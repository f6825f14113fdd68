"""Decoding of image files by Pillow: at full size, or JPEGs at a fraction of it."""

import io
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

REDUCTIONS = (8, 4, 2, 1)
"""The factors by which a JPEG can be reduced while it is decoded, without decoding it at full size first."""


class EncodedImage:
    """An image in any format that Pillow reads, of which only the header has been read. Not thread-safe.

    Transparency is dropped and the EXIF orientation is ignored, as TensorFlow does.

    - `height`, `width`: its size in pixels.

    **Arguments:** `content`, the content of the file; `channels`, 1 (greyscale) or 3 (RGB), to which the image is
    converted.

    **Raises:** any exception of Pillow on corrupt data (OSError, SyntaxError, ValueError, ...), and
    `DecompressionBombError` for an image with more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """

    def __init__(self, content: bytes, channels: int):
        self._content, self._channels = content, channels
        self._opened: Image.Image | None = Image.open(io.BytesIO(content))
        self.width, self.height = self._opened.size
        self._is_jpeg = self._opened.format in ("JPEG", "MPO")  # an MPO file is a JPEG that is followed by others

    def reduction(self, height: int, width: int, rows: int, columns: int) -> int:
        """Returns by how much the image can be reduced, such that a part of it is not smaller than it has to be.

        **Arguments:** the size of the part in pixels of the image, and the smallest size of it after the reduction.

        **Returns:** the largest factor in `REDUCTIONS` that leaves the part at least `rows` x `columns`; 1 if the image
        is not a JPEG.
        """
        fits = (s for s in REDUCTIONS if height >= s * rows and width >= s * columns)
        return next(fits, 1) if self._is_jpeg else 1

    def picture(self, reduction: int = 1) -> Image.Image:
        """Decodes the image into a Pillow image of mode L or RGB.

        **Arguments:** `reduction`, a factor from `REDUCTIONS`, at most the smaller side; 1 if the image is not a JPEG.

        **Returns:** an image of ceil(height / reduction) rows and ceil(width / reduction) columns. A pixel is about the
        mean of reduction x reduction pixels of the image (the low frequencies of each block of 8 x 8).

        **Raises:** any exception of Pillow on corrupt data; `ValueError` for a reduction that is not possible.
        """
        possible = REDUCTIONS if self._is_jpeg else (1,)
        if reduction not in possible or reduction > min(self.height, self.width):
            raise ValueError(f"this image cannot be reduced by {reduction}")
        opened, self._opened = self._opened, None  # it can be decoded once
        with Image.open(io.BytesIO(self._content)) if opened is None else opened as picture:
            if reduction > 1:
                picture.draft(None, (self.width // reduction, self.height // reduction))
            mode = "L" if self._channels == 1 else "RGB"
            # Pillow warns if the transparency of individual palette colours is dropped in a single conversion.
            transparent = picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes)
            whole = picture.convert("RGBA") if transparent else picture
            whole.load()
            return whole if whole.mode == mode else whole.convert(mode)

    def pixels(self, reduction: int = 1) -> UInt8[np.ndarray, "h w c"]:
        """Returns the pixels of `picture(reduction)`; raises as it does."""
        pixels = np.asarray(self.picture(reduction))
        return pixels[..., None] if self._channels == 1 else pixels


class EncodedExample(NamedTuple):
    """A labelled image that is not decoded yet."""

    image: EncodedImage
    label: int


@runtime_checkable
class EncodedSource(Protocol):
    """A data source whose images can be had before they are decoded."""

    def encoded(self, index: int) -> EncodedExample | None:
        """Returns the example `index` with its image as it is stored.

        None if the source has nothing but pixels: those of `source[index]`, which raises what is wrong with the image.

        **Raises:** `BrokenImage` if the header of the image cannot be read, or its label is not a class.
        """
        ...


def decode_image(encoded: bytes, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image in any format that Pillow reads, such as PNG or JPEG.

    **Arguments:** `encoded`, the content of the file; `channels`, 1 (greyscale) or 3 (RGB), to which the image is
    converted. Transparency is dropped and the EXIF orientation is ignored, as TensorFlow does.

    **Raises:** any exception of Pillow on corrupt data (OSError, SyntaxError, ValueError, ...).
    """
    return EncodedImage(encoded, channels).pixels()
