"""Images in other channels, and classes in another order."""

import numpy as np
import pytest
from PIL import Image

from umd_eqx.core.types import DataSpec
from umd_eqx.data.converted import Converted
from umd_eqx.data.source import BrokenImage, Example


class Three:
    """Three images, of which the last is broken."""

    def __init__(self, channels: int):
        self.pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, channels), np.uint8)
        self.spec = DataSpec("three", 3, 3, None, None, channels, 3)

    def __len__(self) -> int:
        return 3

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return np.array([2, 0, -1])[indices]

    def __getitem__(self, index: int) -> Example:
        if index == 2:
            raise BrokenImage(2, "cut short")
        return {"image": self.pixels[index], "label": [2, 0][index]}


def test_grey_images_are_repeated_and_colour_images_become_grey_as_by_pillow():
    grey, colour = Three(1), Three(3)
    widened = Converted(grey, 3)
    assert widened.spec == grey.spec._replace(channels=3)
    np.testing.assert_array_equal(widened[1]["image"], np.repeat(grey.pixels[1], 3, axis=2))
    narrowed = Converted(colour, 1)[1]["image"]
    np.testing.assert_array_equal(narrowed[..., 0], np.asarray(Image.fromarray(colour.pixels[1]).convert("L")))
    np.testing.assert_array_equal(Converted(colour, 3)[0]["image"], colour.pixels[0])
    with pytest.raises(BrokenImage):
        widened[2]


def test_classes_are_renumbered_and_unreadable_labels_stay():
    source = Converted(Three(1), 1, np.array([5, 1, 3]), 6)
    assert (source.spec.num_classes, len(source)) == (6, 3)
    assert source.labels(np.arange(3)).tolist() == [3, 5, -1]
    assert [source[i]["label"] for i in range(2)] == [3, 5]
    assert Converted(Three(1), 1).labels(np.arange(3)).tolist() == [2, 0, -1]
