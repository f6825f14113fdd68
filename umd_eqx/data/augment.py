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
    if reduction == 1:
        picture, part = image.picture(region=region), (0, 0, region.height, region.width)
    else:
        # Not cut out: the edges of the crop are between pixels of the reduced image.
        top, left, height, width = region
        picture = image.picture(reduction)
        part = (top / reduction, left / reduction, height / reduction, width / reduction)
    pixels = center_crop(resize_extent(picture, part, *sides), size)
    return to_unit_range(pixels[:, ::-1] if mirrored else pixels)
