"""Pure functions from the pixels of one image to what a network is fed.

Pictures are uint8 (rows, columns, channels) with 1 or 3 channels; the composed transforms give float32 (size, size,
channels) in [-1, 1]. Randomness comes in by a `numpy.random.Generator`.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop_box(
    rng: np.random.Generator, height: int, width: int, area_min: float | int, *, attempts: int = 100
) -> Box:
    """Draw the rectangle to crop, as the reference does by TensorFlow's `sample_distorted_bounding_box`.

    The aspect ratio (width / height) is uniform in 0.75 .. 1.33; given it, the height is uniform among the whole
    numbers for which the crop fits into the image and its area is in [area_min, 100] %; the place is uniform.

    **Arguments:**

    - `rng`: where the randomness comes from.
    - `height`, `width`: of the image, in pixels.
    - `area_min`: the smallest area, in percent of the image's, 0 .. 100.
    - `attempts`: after so many aspect ratios at which no such crop exists, it is the whole image.

    **Returns:** a `Box` inside the image.
    """
    smallest = area_min / 100 * height * width
    for _ in range(attempts):
        aspect = rng.uniform(0.75, 1.33)
        low = max(1, round(math.sqrt(smallest / aspect)))
        high = min(height, round(math.sqrt(height * width / aspect)), int((width + 0.5) / aspect))
        rows = int(rng.integers(low, max(low, high) + 1))
        columns = round(rows * aspect)
        if rows * columns < smallest:  # by rounding; one row more may mend it
            rows += 1
            columns = round(rows * aspect)
        if rows <= height and 0 < columns <= width and rows * columns >= smallest:
            top = int(rng.integers(0, height - rows + 1))
            return Box(top, int(rng.integers(0, width - columns + 1)), rows, columns)
    return Box(0, 0, height, width)


def _to_pillow(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(f"an image is uint8 (rows, columns, 1 or 3 channels), not {image.dtype} {image.shape}")
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _from_pillow(picture: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _bilinear(image: UInt8[np.ndarray, "h w c"], height: int, width: int, antialias: bool) -> UInt8[np.ndarray, "..."]:
    """Bilinear with half-pixel centres; edges are continued. Pillow's `resize` is the one with antialiasing."""
    picture = _to_pillow(image)
    if antialias:
        return _from_pillow(picture.resize((width, height), Image.Resampling.BILINEAR))
    box = (0, 0, image.shape[1], image.shape[0])
    return _from_pillow(
        picture.transform((width, height), Image.Transform.EXTENT, box, resample=Image.Resampling.BILINEAR)
    )


def crop_resize(image: UInt8[np.ndarray, "h w c"], box: Box, size: int) -> UInt8[np.ndarray, "size size c"]:
    """Cut `box` out and resize it to size x size, bilinear without antialiasing, as the reference trains.

    A box that has this size already is cut out as it is.
    """
    top, left, height, width = box
    cut = image[top : top + height, left : left + width]
    return cut if (height, width) == (size, size) else _bilinear(cut, size, size, antialias=False)


def resize_smaller_side(
    image: UInt8[np.ndarray, "h w c"], size: int, antialias: bool
) -> UInt8[np.ndarray, "new_h new_w c"]:
    """Resize bilinearly so that the smaller side has `size` pixels and the other its proportion (rounded)."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    new = (max(size, round(height * scale)), max(size, round(width * scale)))
    return image if new == (height, width) else _bilinear(image, *new, antialias=antialias)


def center_crop(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Cut the middle size x size out; where that is not even, one pixel more is left at the bottom or right.

    **Raises:** `ValueError` if the image is smaller.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size} x {size} out of {height} x {width}")
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def to_unit_range(image: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Map 0 .. 255 to -1 .. 1 linearly."""
    unit = image.astype(np.float32)
    unit /= 127.5
    unit -= 1
    return unit


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random crop, resized to size x size, and flip left to right: the reference's augmentation.

    **Arguments:**

    - `size`: height and width of what comes out.
    - `area_min`: smallest area of the crop in percent; the reference takes 80 in pre-training, 95 in fine-tuning. At
        100 it is the whole image, and an image of the right size stays as it is.
    - `flip`: whether one image in two is mirrored.
    """

    size: int
    area_min: float | int = 80.0
    flip: bool = True

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Float32[np.ndarray, "size size c"]:
        """The augmented image, in [-1, 1]."""
        height, width = image.shape[:2]
        whole = self.area_min >= 100
        box = Box(0, 0, height, width) if whole else random_crop_box(rng, height, width, self.area_min)
        image = crop_resize(image, box, self.size)
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return to_unit_range(image)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Smaller side to `size`, antialiased, and the middle size x size of it."""

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """The image, in [-1, 1]."""
        return to_unit_range(center_crop(resize_smaller_side(image, self.size, antialias=True), self.size))


@dataclasses.dataclass(frozen=True)
class SquashTransform:
    """The whole image, squashed to `size` x `size` without antialiasing: the reference's images for FID."""

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """The image, in [-1, 1]."""
        return to_unit_range(crop_resize(image, Box(0, 0, *image.shape[:2]), self.size))


@dataclasses.dataclass(frozen=True)
class FewShotTransform:
    """Smaller side to int(size * 256/246), antialiased, and the middle of it: the reference's few-shot evaluation.

    **Arguments:**

    - `size`: height and width of what comes out.
    - `native`: whether all images of the data set are size x size. They are left as they are then.
    """

    size: int
    native: bool = False

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """The image, in [-1, 1]. **Raises:** `ValueError` for an image of another size where `native`."""
        if self.native:
            if image.shape[:2] != (self.size, self.size):
                raise ValueError(f"an image is {image.shape[0]} x {image.shape[1]}, not {self.size} x {self.size}")
            return to_unit_range(image)
        larger = self.size * 256 // 246
        return to_unit_range(center_crop(resize_smaller_side(image, larger, antialias=True), self.size))
