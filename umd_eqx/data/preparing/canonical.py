"""What is known about ImageNet 2012: its classes, their order, its counts, and the labels of its validation images."""

from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from umd_eqx.core.errors import BadInput

IMAGENET = "imagenet2012"
VERSION = "5.1.0"
"""The version of TFDS's own `imagenet2012`; images are in the same order as there."""

COUNTS: Mapping[str, int] = {"train": 1_281_167, "validation": 50_000}
"""The number of images in each split."""


def official_classes() -> tuple[str, ...]:
    """Returns the 1000 WordNet ids of ImageNet 2012 in the order of their labels, which is their sorted order."""
    return tuple(_lines("labels.txt"))


def official_validation_labels(names: Sequence[str]) -> list[str] | None:
    """Returns the WordNet id of each validation image, as TFDS has them; None if these are not the 50,000 images."""
    if len(names) != COUNTS["validation"]:
        return None
    known = {f"ILSVRC2012_val_{number:08d}.JPEG": number - 1 for number in range(1, COUNTS["validation"] + 1)}
    if any(name not in known for name in names):
        return None
    labels = _lines("validation_labels.txt")
    return [labels[known[name]] for name in names]


def departures(classes: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Returns in what some images differ from ImageNet 2012: its classes and their order, and its counts."""
    found, official = [], official_classes()
    if tuple(classes) != official:
        if len(classes) != len(official):
            found.append(f"it has {len(classes):,} classes instead of {len(official):,}")
        elif set(classes) == set(official):
            found.append("its classes are not in the order of their WordNet ids")
        else:
            found.append(f"its classes are others, such as {min(set(classes) - set(official))}")
    for split, count in COUNTS.items():
        if counts.get(split, 0) != count:
            found.append(f"its split {split} has {counts.get(split, 0):,} images instead of {count:,}")
    return found


def require_official_order(classes: Sequence[str], folder: str) -> None:
    """Raises `BadInput` naming `data.source.dir` for the classes of ImageNet 2012 in another order."""
    official = official_classes()
    if tuple(classes) != official and sorted(classes) == list(official):
        problem = f"{folder} has the classes of ImageNet in another order than that of their sorted WordNet ids"
        raise BadInput("data.source.dir", problem, "Prepare it again by experiments/prepare.py")


def _lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()
