"""Pure functions from the pixels of an image to the input of a network.

Images are uint8 (rows, columns, channels) with 1 or 3 channels; the composed transforms return float32 (size, size,
channels) in [-1, 1]. Randomness is drawn from a `numpy.random.Generator`.

The resize of each transform is that of the reference: without antialiasing in training and evaluation, with
antialiasing for the few-shot probe. The reference resizes with TensorFlow, which computes in float32 and truncates to
uint8. The resizes here do the same, and agree with it up to a difference of 1 in pixel values 0-255, due to float32
rounding.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop_box(
    rng: np.random.Generator, height: int, width: int, area_min: float | int, *, attempts: int = 100
) -> Box:
    """Draws a random crop, as the reference does with TensorFlow's `sample_distorted_bounding_box`.

    The aspect ratio (width / height) is uniform in 0.75 .. 1.33. Given the aspect ratio, the height is uniform among
    the integers for which the crop fits into the image and its area is in [area_min, 100] %. The position is uniform
    among all but the last: as in TensorFlow, a crop with fewer rows than the image never includes the last row, and one
    with fewer columns never includes the last column.

    **Arguments:**

    - `rng`: the random generator.
    - `height`, `width`: the size of the image in pixels.
    - `area_min`: the smallest area in percent of the image, 0 .. 100.
    - `attempts`: the number of aspect ratios to try; if none allows such a crop, the whole image is returned.

    **Returns:** a `Box` within the image.
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
        if rows * columns < smallest:  # due to rounding; one more row may suffice
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
        raise ValueError(f"an image must be uint8 (rows, columns, 1 or 3 channels), not {image.dtype} {image.shape}")
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _from_pillow(picture: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def resize_extent(
    picture: Image.Image, region: tuple[float | int, ...], height: int, width: int
) -> UInt8[np.ndarray, "height width c"]:
    """Resizes a region of an image to height x width, bilinear without antialiasing, and truncates to integers.

    Pixels have half-pixel centres, and the edges of the image are replicated. Next to the edges of the region, pixels
    outside of it contribute if the region is enlarged, or if its edges are within pixels.

    **Arguments:** `picture`, an image of mode L or RGB; `region`, (top, left, height, width) in pixels, not necessarily
    whole ones, within the image.
    """
    top, left, rows, columns = region
    extent = (left, top, left + columns, top + rows)
    return _from_pillow(
        picture.transform((width, height), Image.Transform.EXTENT, extent, resample=Image.Resampling.BILINEAR)
    )


def _bilinear(image: UInt8[np.ndarray, "h w c"], height: int, width: int, antialias: bool) -> UInt8[np.ndarray, "..."]:
    """Resizes bilinearly with half-pixel centres and replicated edges, and truncates to integers.

    With antialiasing, the kernel is a triangle as wide as a pixel of the smaller image, renormalised at the edges.
    """
    picture = _to_pillow(image)
    if not antialias:
        return resize_extent(picture, (0, 0, picture.height, picture.width), height, width)
    # In float32, because Pillow's `resize` of 8-bit channels rounds to the nearest integer, twice.
    bands = [band.convert("F").resize((width, height), Image.Resampling.BILINEAR) for band in picture.split()]
    return np.stack([np.asarray(band) for band in bands], axis=-1).astype(np.uint8)


def crop_resize(image: UInt8[np.ndarray, "h w c"], box: Box, size: int) -> UInt8[np.ndarray, "size size c"]:
    """Crops `box` and resizes it to size x size, bilinear without antialiasing, as the reference does in training.

    A box of this size is cropped without resizing.
    """
    top, left, height, width = box
    cut = image[top : top + height, left : left + width]
    return cut if (height, width) == (size, size) else _bilinear(cut, size, size, antialias=False)


def smaller_side_resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns height and width of an image whose smaller side is resized to `size` pixels, keeping the aspect ratio.

    The larger side is rounded as in the reference: computed in float32, and rounded half to even.
    """
    sides = np.array((height, width), np.float32)
    rows, columns = np.rint(sides * (np.float32(size) / sides.min())).astype(int).tolist()
    return rows, columns


def resize_smaller_side(
    image: UInt8[np.ndarray, "h w c"], size: int, antialias: bool
) -> UInt8[np.ndarray, "new_h new_w c"]:
    """Resizes bilinearly to `size` pixels for the smaller side, keeping the aspect ratio (`smaller_side_resized`)."""
    height, width = smaller_side_resized(image.shape[0], image.shape[1], size)
    return image if image.shape[:2] == (height, width) else _bilinear(image, height, width, antialias=antialias)


def center_crop(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Crops the central size x size pixels; an odd margin leaves the extra pixel at the bottom or right.

    **Raises:** `ValueError` if the image is smaller than that.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"cannot crop {size} x {size} from {height} x {width}")
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def adm_crop(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Resizes and crops as ADM does: see `ADMTransform`."""
    picture = _to_pillow(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize(sides, Image.Resampling.BICUBIC)
    return center_crop(_from_pillow(picture), size)


def box_resize(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Resizes the whole image to size x size by averages of boxes, which changes its aspect ratio.

    This is how the downsampled ImageNet of Chrabaszcz et al. 2017 (arXiv 1707.08819) was made.
    """
    return _from_pillow(_to_pillow(image).resize((size, size), Image.Resampling.BOX))


def _middle(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Applies the geometry of all images that are not cropped at random: keeps the aspect ratio, crops the centre."""
    return center_crop(resize_smaller_side(image, size, antialias=False), size)


def to_unit_range(image: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Maps 0 .. 255 linearly to -1 .. 1."""
    unit = image.astype(np.float32)
    unit /= 127.5
    unit -= 1
    return unit


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The augmentation of the reference: a random crop, resized to size x size, and a horizontal flip.

    **Arguments:**

    - `size`: height and width of the output.
    - `area_min`: smallest area of the crop in percent; the reference uses 80 in pre-training and 95 in fine-tuning. 100
        disables the random crop: images have the geometry of `EvalTransform`, which keeps the aspect ratio and leaves
        images of the right size unchanged.
    - `flip`: whether images are flipped with probability 1/2.
    - `decode`: how images that are not decoded yet are decoded, "exact" or "fast" (`umd_eqx.data.augment`).
    """

    size: int
    area_min: float | int = 80.0
    flip: bool = True
    decode: Literal["exact", "fast"] = "exact"

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> Float32[np.ndarray, "size size c"]:
        """Returns the augmented image, in [-1, 1]."""
        box, mirrored = self.draw(rng, image.shape[0], image.shape[1])
        image = _middle(image, self.size) if box is None else crop_resize(image, box, self.size)
        return to_unit_range(image[:, ::-1] if mirrored else image)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[Box | None, bool]:
        """Draws the augmentation of an image of height x width pixels, which depends on nothing else.

        **Returns:** the random crop, None if there is none, and whether the image is mirrored.
        """
        box = None if self.area_min >= 100 else random_crop_box(rng, height, width, self.area_min)
        return box, self.flip and bool(rng.random() < 0.5)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """The evaluation transform of the reference: smaller side to `size`, without antialiasing, and a centre crop.

    The resize is bilinear, as in training. The transform is used for all metrics on images like those of training:
    denoising and reconstruction errors, the quality of a tokenizer and the statistics of its latents, and the accuracy
    of a classifier. The real images that samples are compared with are resized as their protocol defines
    (`umd_eqx.eval.protocol`).
    """

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """Returns the image, in [-1, 1]."""
        return to_unit_range(_middle(image, self.size))


@dataclasses.dataclass(frozen=True)
class SquashTransform:
    """The transform of the reference for FID: the whole image, resized to `size` x `size` without antialiasing."""

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """Returns the image, in [-1, 1]."""
        return to_unit_range(crop_resize(image, Box(0, 0, *image.shape[:2]), self.size))


@dataclasses.dataclass(frozen=True)
class ADMTransform:
    """The usual transform of real images for FID: that of ADM (Dhariwal and Nichol 2021) and of many later papers.

    Both sides are halved by averaging (Pillow's BOX) as long as the smaller one has at least 2 `size` pixels. Then the
    smaller side is resized to `size`, bicubic with antialiasing, and the central size x size pixels are cropped. Each
    step rounds to the nearest pixel value 0-255.
    """

    size: int

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """Returns the image, in [-1, 1]."""
        return to_unit_range(adm_crop(image, self.size))


@dataclasses.dataclass(frozen=True)
class FewShotTransform:
    """The transform of the reference for few-shot evaluation: antialiased resize, then a centre crop.

    The smaller side is resized to int(size * 256/246).

    **Arguments:**

    - `size`: height and width of the output.
    - `native`: whether all images of the data set are size x size. They are then not resized, whereas the reference
        would enlarge them.
    """

    size: int
    native: bool = False

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "size size c"]:
        """Returns the image, in [-1, 1]. Raises `ValueError` for an image of another size if `native`."""
        if self.native:
            if image.shape[:2] != (self.size, self.size):
                raise ValueError(f"an image is {image.shape[0]} x {image.shape[1]}, not {self.size} x {self.size}")
            return to_unit_range(image)
        larger = int(self.size * (256 / 246))
        return to_unit_range(center_crop(resize_smaller_side(image, larger, antialias=True), self.size))
