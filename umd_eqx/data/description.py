"""What TFDS wrote down about a data set, without its images."""

from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.folders import one_line


def open_builder(folder: epath.Path) -> Any:
    """What TFDS reads of one version's folder. Raises `BadInput` naming `--data.dir`."""
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises many kinds, and by now only what the folder holds can be at fault
        problem = f"{folder} is no data set that TFDS can read ({one_line(error)})"
        raise BadInput("--data.dir", problem, "Prepare the data set anew.") from error


def count_images(builder: Any, split: str, field: str) -> int:
    """Number of images in a split such as "train" or "train[:99%]"; `BadInput` if it is unknown or empty."""
    known = f"Splits of {builder.info.name}: {', '.join(builder.info.splits) or 'none'}"
    try:
        count = builder.info.splits[split].num_examples
    except (ValueError, KeyError) as error:
        problem = f"'{split}' is no split, or no part of one, that the data set has"
        raise BadInput(field, problem, f"{known}; parts of them are written train[:99%] or train[1000:].") from error
    if count == 0:
        raise BadInput(field, f"'{split}' has no images", f"Take a larger part. {known}.")
    return count


def spec_of(builder: Any, name: str, num_train: int, num_test: int) -> DataSpec:
    """The facts of a data set with so many images in its splits. Raises `BadInput` where images have no labels."""
    features: Any = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel) and label.num_classes
    ):
        problem = f"{name} has no labelled images (features 'image' and 'label', an Image and a ClassLabel)"
        raise BadInput("--data.name", problem, "Take another data set, or prepare it with these two features.")
    dtype = np.dtype(cast(Any, image.np_dtype))
    if dtype != np.uint8:
        problem = f"{name} has images of {dtype}, and only uint8 is read"
        raise BadInput("--data.name", problem, "Prepare it with 8-bit images.")
    height, width, channels = cast(tuple[int | None, ...], image.shape)
    return DataSpec(name, num_train, num_test, height, width, 1 if channels == 1 else 3, label.num_classes)
