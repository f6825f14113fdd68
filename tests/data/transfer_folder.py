"""The ten data sets of the transfer benchmark in small, as TFDS would have written them: their features and splits."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from data.tiny_sets import Tiny, encode

IMAGE, TEXT, BOX = tfds.features.Image, tfds.features.Text, tfds.features.BBoxFeature
FRAME = tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=1.0, xmax=1.0)


@dataclasses.dataclass(frozen=True)
class Small:
    """A set: its splits with the number of images of each class, its size and what else a record holds."""

    splits: dict[str, int]
    shape: tuple[int | None, int | None, int] = (None, None, 3)
    further: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    format: str = "JPEG"
    folder: str = ""


TEN = {
    "imagenet2012": Small({"train": 8, "validation": 3}, further={"file_name": (TEXT(), "a.JPEG")}),
    "cifar100": Small(
        {"train": 8, "test": 3},
        (32, 32, 3),
        {"id": (TEXT(), "1"), "coarse_label": (tfds.features.ClassLabel(num_classes=2), 1)},
        "PNG",
    ),
    "stl10": Small({"train": 8, "test": 3, "unlabelled": 2}, (96, 96, 3), format="PNG"),
    "dtd": Small({"train": 5, "test": 3, "validation": 2}, further={"file_name": (TEXT(), "a.jpg")}),
    "oxford_iiit_pet": Small(
        {"train": 8, "test": 3},
        further={
            "segmentation_mask": (IMAGE(shape=(None, None, 1)), encode(np.zeros((6, 7, 1), np.uint8))),
            "species": (tfds.features.ClassLabel(names=["Cat", "Dog"]), 0),
            "file_name": (TEXT(), "a.jpg"),
            "head_bbox": (BOX(), FRAME),
        },
    ),
    "oxford_flowers102": Small({"train": 4, "test": 6, "validation": 4}, further={"file_name": (TEXT(), "a.jpg")}),
    "food101": Small({"train": 8, "validation": 3}),
    "stanford_dogs": Small(
        {"train": 8, "test": 3},
        further={
            "image/filename": (TEXT(), "a.jpg"),
            "objects": (tfds.features.Sequence({"bbox": BOX()}), [{"bbox": FRAME}, {"bbox": FRAME}]),
        },
    ),
    "imagenet_v2": Small({"test": 3}, further={"file_name": (TEXT(), "0/a.jpg")}, folder="matched-frequency"),
    "uc_merced": Small({"train": 10}, further={"filename": (TEXT(), "a.tif")}),
}
"""In the order of the benchmark. uc_merced has a single split, imagenet_v2 a configuration and only test images."""


def shade(label: int, i: int, shape: tuple[int | None, int | None, int], classes: int) -> np.ndarray:
    """An image whose brightness hints at its class, of a size of its own unless all of the set have one size."""
    rng = np.random.default_rng((label, i))
    height, width = shape[0] or 34 + i % 7, shape[1] or 40
    middle = 60 + label * 60 // classes + rng.integers(0, 60)
    return rng.integers(middle - 50, middle + 50, (height, width, shape[2]), np.uint8)


def write_set(root: Path, name: str, classes: int = 3) -> Path:
    """Writes a set in small into `root/NAME[/CONFIG]/1.0.0`."""
    small = TEN[name]
    fixed = small.shape[0] is not None
    features = tfds.features.FeaturesDict(
        {
            "image": IMAGE(shape=small.shape, encoding_format="png" if fixed else None),
            "label": tfds.features.ClassLabel(num_classes=classes),
            **{key: feature for key, (feature, _) in small.further.items()},
        }
    )
    further = {key: value for key, (_, value) in small.further.items()}
    splits = {}
    for number, (split, each) in enumerate(small.splits.items()):
        count = each * classes
        splits[split] = [
            {
                "image": encode(shade(i % classes, i + 1000 * number, small.shape, classes), small.format),
                "label": -1 if split == "unlabelled" else i % classes,
                **further,
            }
            for i in range(count)
        ]
    builder = Tiny(splits=splits, features=features, data_dir=root / "written", file_format="array_record")
    builder.download_and_prepare(download_dir=root / "downloads")
    target = root / name / small.folder / "1.0.0"
    target.parent.mkdir(parents=True)
    return Path(builder.data_dir).rename(target)


def write_sets(root: Path, names: Collection[str] = tuple(TEN), classes: int = 3) -> Path:
    """Writes some of the sets, and returns the folder that contains them."""
    for name in names:
        write_set(root, name, classes)
    return root
