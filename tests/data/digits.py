"""scikit-learn's handwritten digits, 1,797 grey images of 8 x 8, as a data set that no part of the package knows."""

from pathlib import Path

import numpy as np
import pytest
from data.own_images import KINDS, Labelled, shuffled


def digits() -> Labelled:
    """The images in order, with their labels; the values 0 .. 16 are stretched to 0 .. 255."""
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, of the extra `test`")
    found = datasets.load_digits()
    pixels = (found.images * 255 / 16).astype(np.uint8)[..., None]
    return list(zip(pixels, found.target.tolist(), strict=True))


def write_digits(root: Path, kind: str) -> Path:
    """Writes the digits into `root/digits` as one of `KINDS`, in an order of its own."""
    return KINDS[kind](root / kind / "digits", shuffled(digits(), sorted(KINDS).index(kind)))
