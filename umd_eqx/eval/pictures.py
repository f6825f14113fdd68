"""Image grids of the outputs of a network."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from umd_eqx.core.processes import to_host

GAP = 2
"""Number of pixels between two images of a grid."""
WHITE = 255


def to_rgb8(image: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an image in [-1, 1] (clipped) to RGB: one channel is repeated; of several, the first three are taken."""
    pixels = np.clip((np.asarray(image, np.float32) + 1.0) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]


def pick(
    kinds: Sequence[Float[Array | np.ndarray, "b h w c"]], valid: Bool[np.ndarray, "b"], count: int
) -> list[tuple[Float[np.ndarray, "h w c"], ...]]:
    """Selects the first `count` valid images of several batches with matching rows; returns a tuple per row."""
    rows = np.flatnonzero(valid)[:count]
    return list(zip(*(to_host(kind)[rows] for kind in kinds), strict=True)) if rows.size else []


def grid(rows: Sequence[Sequence[Float[np.ndarray, "h w c"]]]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Arranges images of the same size in a grid, with white lines between them."""
    height, width, _ = rows[0][0].shape
    canvas = np.full((len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), WHITE, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = to_rgb8(image)
    return canvas
