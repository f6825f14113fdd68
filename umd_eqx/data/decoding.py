"""Decoding of image files: at full size, or JPEGs at a fraction of it.

JPEGs are decoded by simplejpeg where it is installed (`pip install "umd_eqx[jpeg]"`), otherwise by Pillow. Both use
libjpeg-turbo and give the same pixels, bit for bit; simplejpeg copies them less often. Pillow opens every file and
judges it: what simplejpeg refuses is decoded, or refused, by Pillow.
"""

import functools
import importlib
import importlib.util
import io
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

REDUCTIONS = (8, 4, 2, 1)
"""The factors by which a JPEG can be reduced while it is decoded, without decoding it at full size first."""

_JPEG = ("JPEG", "MPO")  # Pillow's names; an MPO file is a JPEG that is followed by others


class EncodedImage:
    """An image in any format that Pillow reads, of which only the header has been read.

    Transparency is dropped and the EXIF orientation is ignored, as TensorFlow does.

    - `height`, `width`: its size in pixels.

    **Arguments:** `content`, the content of the file; `channels`, 1 (greyscale) or 3 (RGB), to which the image is
    converted.

    **Raises:** any exception of Pillow on corrupt data (OSError, SyntaxError, ValueError, ...), and
    `DecompressionBombError` for an image with more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """

    def __init__(self, content: bytes, channels: int):
        self._content, self._channels = content, channels
        with Image.open(io.BytesIO(content)) as picture:
            self.width, self.height = picture.size
            self._is_jpeg = picture.format in _JPEG

    def reduction(self, height: int, width: int, rows: int, columns: int) -> int:
        """Returns by how much the image can be reduced, such that a part of it is not smaller than it has to be.

        **Arguments:** the size of the part in pixels of the image, and the smallest size of it after the reduction.

        **Returns:** the largest factor in `REDUCTIONS` that leaves the part at least `rows` x `columns`; 1 if the image
        is not a JPEG.
        """
        fits = (s for s in REDUCTIONS if height >= s * rows and width >= s * columns)
        return next(fits, 1) if self._is_jpeg else 1

    def pixels(self, reduction: int = 1) -> UInt8[np.ndarray, "h w c"]:
        """Decodes the image.

        **Arguments:** `reduction`, a factor from `REDUCTIONS`, at most the smaller side; 1 if the image is not a JPEG.

        **Returns:** the pixels, of ceil(height / reduction) rows and ceil(width / reduction) columns. Each is about the
        mean of reduction x reduction pixels of the image (the low frequencies of each block of 8 x 8).

        **Raises:** any exception of Pillow on corrupt data; `ValueError` for a reduction that is not possible.
        """
        decoded = self._decoded(reduction)
        if isinstance(decoded, np.ndarray):
            return decoded
        pixels = np.asarray(decoded)
        return pixels[..., None] if self._channels == 1 else pixels

    def picture(self, reduction: int = 1, region: tuple[int, int, int, int] | None = None) -> Image.Image:
        """Decodes the image, or a region of it, into a Pillow image of mode L or RGB.

        **Arguments:** `reduction` as for `pixels`; `region`, (top, left, height, width) in pixels of the reduced image,
        None for all. **Raises:** as `pixels`.
        """
        decoded = self._decoded(reduction)
        if isinstance(decoded, np.ndarray):
            top, left, height, width = (0, 0, *decoded.shape[:2]) if region is None else region
            cut = decoded[top : top + height, left : left + width]
            return Image.fromarray(cut[..., 0] if self._channels == 1 else cut)
        if region is None:
            return decoded
        top, left, height, width = region
        return decoded.crop((left, top, left + width, top + height))

    def _decoded(self, reduction: int) -> UInt8[np.ndarray, "h w c"] | Image.Image:
        possible = REDUCTIONS if self._is_jpeg else (1,)
        if reduction not in possible or reduction > min(self.height, self.width):
            raise ValueError(f"this image cannot be reduced by {reduction}")
        pixels = self._by_simplejpeg(reduction) if self._is_jpeg else None
        return self._by_pillow(reduction) if pixels is None else pixels

    def _by_pillow(self, reduction: int) -> Image.Image:
        with Image.open(io.BytesIO(self._content)) as picture:
            if reduction > 1:
                picture.draft(None, (self.width // reduction, self.height // reduction))
            mode = "L" if self._channels == 1 else "RGB"
            # Pillow warns if the transparency of individual palette colours is dropped in a single conversion.
            transparent = picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes)
            whole = picture.convert("RGBA") if transparent else picture
            whole.load()
            return whole if whole.mode == mode else whole.convert(mode)

    def _by_simplejpeg(self, reduction: int) -> UInt8[np.ndarray, "h w c"] | None:
        """Decodes a JPEG as Pillow does. None if simplejpeg is not installed, or would not give the same pixels."""
        library = _simplejpeg()
        if library is None or (reduction > 1 and max(self.height, self.width) < 8):
            return None  # so small that several reductions give the same size, by which simplejpeg tells them apart
        try:
            height, width, space, _ = library.decode_jpeg_header(self._content)
            # Of colours Pillow makes grey by its own formula, and it inverts CMYK.
            if (height, width) != (self.height, self.width) or (space, self._channels) not in _SAME:
                return None
            least = (-(-height // reduction), -(-width // reduction)) if reduction > 1 else (0, 0)
            return library.decode_jpeg(self._content, _SAME[space, self._channels], False, False, *least, 1)
        except ValueError:
            return None


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


# The pixels that simplejpeg is asked for, by the colour space of a JPEG and the number of channels.
_SAME = {("YCbCr", 3): "RGB", ("Gray", 3): "RGB", ("Gray", 1): "GRAY"}


@functools.cache
def _simplejpeg() -> Any:
    """Returns the module simplejpeg, or None where it is not installed."""
    return importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None


def decode_image(encoded: bytes, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image in any format that Pillow reads, such as PNG or JPEG.

    **Arguments:** `encoded`, the content of the file; `channels`, 1 (greyscale) or 3 (RGB), to which the image is
    converted. Transparency is dropped and the EXIF orientation is ignored, as TensorFlow does.

    **Raises:** any exception of Pillow on corrupt data (OSError, SyntaxError, ValueError, ...).
    """
    return EncodedImage(encoded, channels).pixels()
