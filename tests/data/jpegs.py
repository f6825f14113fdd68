"""JPEGs for the tests of decoding."""

import io

import numpy as np
from PIL import Image


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def slopes(height: int, width: int) -> np.ndarray:
    """An image that tells where a pixel was: red grows to the right, green downwards, and blue is one."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, np.full_like(x, 60)], axis=-1).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 95, **options) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def cmyk(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()
