"""The training transform, applied to images that are not decoded yet."""

import numpy as np
from jaxtyping import Float32

from umd_eqx.data.decoding import EncodedImage
from umd_eqx.data.transforms import (
    Box,
    TrainTransform,
    center_crop,
    resize_extent,
    smaller_side_resized,
    to_unit_range,
)


def augment_encoded(
    transform: TrainTransform, image: EncodedImage, rng: np.random.Generator
) -> Float32[np.ndarray, "size size c"]:
    """Returns the augmented image, in [-1, 1].

    If `transform.decode` is "exact", it equals `transform(image.pixels(), rng)`, and pixels are copied less often. If
    it is "fast", a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and all of its size at which the crop is not
    smaller than the output. Crop and flip are the same, as they depend only on the random generator and on the size of
    the image, which is in its header. The pixels of a reduced image are smoother: decoding averages what the resize of
    the reference skips.

    **Raises:** any exception of Pillow on corrupt data.
    """
    size = transform.size
    box, mirrored = transform.draw(rng, image.height, image.width)
    if box is None:
        region, sides = Box(0, 0, image.height, image.width), smaller_side_resized(image.height, image.width, size)
    else:
        region, sides = box, (size, size)
    reduction = image.reduction(region.height, region.width, *sides) if transform.decode == "fast" else 1
    picture = image.picture(reduction)
    part = tuple(side / reduction for side in region)  # whose edges may be between pixels of a reduced image
    if reduction == 1 and not _same_in_place(region, sides):
        top, left, height, width = region
        picture, part = picture.crop((left, top, left + width, top + height)), (0, 0, height, width)
    pixels = center_crop(resize_extent(picture, part, *sides), size)
    return to_unit_range(pixels[:, ::-1] if mirrored else pixels)


def _same_in_place(region: Box, sides: tuple[int, int]) -> bool:
    """Returns whether a region may be resized without being cut out, which saves a copy, and stay the same to the bit.

    Its pixels are then not interpolated with those around it, since it is not enlarged, and no place is rounded, since
    the scales are multiples of a power of 2.
    """
    return all(new & (new - 1) == 0 and old >= new for old, new in zip(region[2:], sides, strict=True))
