"""Pure functions from the pixels of one image to what a network is fed.

Pictures are uint8 (rows, columns, channels) with 1 or 3 channels; the composed transforms give float32 (size, size,
channels) in [-1, 1]. Randomness comes in by a `numpy.random.Generator`.

Which resize belongs where is the reference's choice: without antialiasing in training and in its evaluations, with it
for the few-shot probe. TensorFlow, which it resizes by, computes in float32 and drops the fraction on the way back to
uint8; so do the resizes here, which agree with it to one pixel value (where rounding of float32 decides).
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
    numbers for which the crop fits into the image and its area is in [area_min, 100] %. The place is uniform among all
    but the last: as in TensorFlow, a crop with fewer rows than the image never reaches its last row, and one with
    fewer columns never its last column.

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
        high = round(math.sqrt(height * width / aspect))
        if round(high * aspect) > width:  # the largest number of rows whose columns fit, when rounded
            high = int((width + 0.5) / aspect)
            if round(high * aspect) > width:
                high -= 1
        high = min(high, height)
        low = min(round(math.sqrt(smallest / aspect)), high)
        rows = int(rng.integers(low, high + 1))
        columns = round(rows * aspect)
        if rows * columns < smallest:  # by rounding; one row more may mend it
            rows += 1
            columns = round(rows * aspect)
        if rows * columns > height * width:
            rows -= 1
            columns = round(rows * aspect)
        if 0 < rows <= height and 0 < columns <= width and smallest <= rows * columns <= height * width:
            return Box(_offset(rng, height - rows), _offset(rng, width - columns), rows, columns)
    return Box(0, 0, height, width)


def _offset(rng: np.random.Generator, room: int) -> int:
    return int(rng.integers(0, room)) if room else 0


def _to_pillow(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(f"an image is uint8 (rows, columns, 1 or 3 channels), not {image.dtype} {image.shape}")
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _from_pillow(picture: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _bilinear(image: UInt8[np.ndarray, "h w c"], height: int, width: int, antialias: bool) -> UInt8[np.ndarray, "..."]:
    """Bilinear with half-pixel centres and continued edges, and the fraction dropped.

    With antialiasing the kernel is a triangle as wide as a pixel of the smaller image, at the edges normalised anew.
    """
    picture = _to_pillow(image)
    if not antialias:
        box = (0, 0, image.shape[1], image.shape[0])
        return _from_pillow(
            picture.transform((width, height), Image.Transform.EXTENT, box, resample=Image.Resampling.BILINEAR)
        )
    # In float32: Pillow's `resize` of 8-bit channels rounds to the nearest, twice.
    bands = [band.convert("F").resize((width, height), Image.Resampling.BILINEAR) for band in picture.split()]
    return np.stack([np.asarray(band) for band in bands], axis=-1).astype(np.uint8)


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
    """Resize bilinearly so that the smaller side has `size` pixels and the other its proportion.

    The proportion is rounded as the reference does: computed in float32, halves to the even number.
    """
    sides = np.array(image.shape[:2], np.float32)
    height, width = np.rint(sides * (np.float32(size) / sides.min())).astype(int).tolist()
    return image if image.shape[:2] == (height, width) else _bilinear(image, height, width, antialias=antialias)


def center_crop(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Cut the middle size x size out; where that is not even, one pixel more is left at the bottom or right.

    **Raises:** `ValueError` if the image is smaller.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size} x {size} out of {height} x {width}")
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def _middle(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """The one geometry of images that are not cropped at random: the aspect ratio is kept, and the middle cut out."""
    return center_crop(resize_smaller_side(image, size, antialias=False), size)


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
        100 there is no random crop: an image has the geometry of `EvalTransform`, which keeps its aspect ratio, and
        one of the right size stays as it is.
    - `flip`: whether one image in two is mirrored.
    """

    size: int
    area_min: float | int = 80.0
    flip: bool = True

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Float32[np.ndarray, "size size c"]:
        """The augmented image, in [-1, 1]."""
        if self.area_min >= 100:
            image = _middle(image, self.size)
        else:
            height, width = image.shape[:2]
            image = crop_resize(image, random_crop_box(rng, height, width, self.area_min), self.size)
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return to_unit_range(image)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Smaller side to `size`, bilinear without antialiasing, and the middle size x size: the reference's evaluation.

    Images of training are resized in the same way, and so is everything that is measured on images like them: errors of
    denoising and reconstruction, a tokenizer's quality and the statistics of its latents, a classifier's accuracy. Real
    images that samples are compared with have the resize of their protocol (`umd_eqx.eval.protocol`).
    """

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """The image, in [-1, 1]."""
        return to_unit_range(_middle(image, self.size))


@dataclasses.dataclass(frozen=True)
class SquashTransform:
    """The whole image, squashed to `size` x `size` without antialiasing: the reference's images for FID."""

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """The image, in [-1, 1]."""
        return to_unit_range(crop_resize(image, Box(0, 0, *image.shape[:2]), self.size))


@dataclasses.dataclass(frozen=True)
class ADMTransform:
    """The real images of the field's FID: how ADM (Dhariwal and Nichol 2021) prepares its data, and many after it.

    Both sides are halved by averages (Pillow's BOX) as long as the smaller one has 2 `size` pixels or more; then the
    smaller one becomes `size`, bicubic with antialiasing, and the middle size x size is cut out. Each step rounds to
    the nearest pixel value.
    """

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """The image, in [-1, 1]."""
        picture = _to_pillow(image)
        while min(picture.size) >= 2 * self.size:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        scale = self.size / min(picture.size)
        sides = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
        return to_unit_range(center_crop(_from_pillow(picture), self.size))


@dataclasses.dataclass(frozen=True)
class FewShotTransform:
    """Smaller side to int(size * 256/246), antialiased, and the middle of it: the reference's few-shot evaluation.

    **Arguments:**

    - `size`: height and width of what comes out.
    - `native`: whether all images of the data set are size x size. They are left as they are then, where the reference
        would enlarge them.
    """

    size: int
    native: bool = False

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """The image, in [-1, 1]. **Raises:** `ValueError` for an image of another size where `native`."""
        if self.native:
            if image.shape[:2] != (self.size, self.size):
                raise ValueError(f"an image is {image.shape[0]} x {image.shape[1]}, not {self.size} x {self.size}")
            return to_unit_range(image)
        larger = int(self.size * (256 / 246))
        return to_unit_range(center_crop(resize_smaller_side(image, larger, antialias=True), self.size))
