"""The metadata of a TFDS data set, read without its images."""

import os
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.folders import one_line
from umd_eqx.data.preparing.canonical import IMAGENET, require_official_order
from umd_eqx.data.splits import existing_split


def open_builder(folder: epath.Path) -> Any:
    """Returns the TFDS builder of the folder of one version. Raises `BadInput` naming `data.source.dir`."""
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises many types, all caused by the content of the folder at this point
        problem = f"{folder} is not a data set that TFDS can read ({one_line(error)})"
        raise BadInput("data.source.dir", problem, "Prepare the data set again") from error


def count_images(builder: Any, split: str, field: str) -> int:
    """Returns the number of images in a split such as "train" or "train[:99%]".

    Raises `BadInput` naming `field` if the split is unknown or empty.
    """
    known = f"Splits of {builder.info.name}: {', '.join(builder.info.splits) or 'none'}"
    try:
        count = builder.info.splits[existing_split(split, builder.info.splits)].num_examples
    except (ValueError, KeyError) as error:
        problem = f"'{split}' is not a split or a part of one"
        raise BadInput(field, problem, f"{known}; parts of them are written train[:99%] or train[1000:]") from error
    if count == 0:
        raise BadInput(field, f"'{split}' has no images", f"Use a larger part. {known}")
    return count


def spec_of(builder: Any, name: str, num_train: int, num_test: int) -> DataSpec:
    """Returns the `DataSpec` of a data set, with 0 classes if it has no feature `label`.

    **Raises:** `BadInput` naming `data.source.name` if it has no uint8 images, or labels that are not classes, and
    naming `data.source.dir` if the classes of ImageNet are in another order.
    """
    features: Any = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image):
        problem = f"{name} has no images (a feature 'image' of the type Image)"
        raise BadInput("data.source.name", problem, "Use another data set, or prepare it with this feature")
    if label is not None and not (isinstance(label, tfds.features.ClassLabel) and label.num_classes):
        problem = f"the labels of {name} are not classes (the feature 'label' is a {type(label).__name__})"
        hint = "Use another data set, or prepare it with a ClassLabel or without the feature 'label'"
        raise BadInput("data.source.name", problem, hint)
    dtype = np.dtype(cast(Any, image.np_dtype))
    if dtype != np.uint8:
        problem = f"{name} has {dtype} images, and only uint8 is supported"
        raise BadInput("data.source.name", problem, "Prepare it with 8-bit images")
    height, width, channels = cast(tuple[int | None, ...], image.shape)
    if label is not None and name == IMAGENET:
        require_official_order(label.names, os.fspath(builder.data_dir))
    num_classes = 0 if label is None else label.num_classes or 0
    return DataSpec(name, num_train, num_test, height, width, 1 if channels == 1 else 3, num_classes)
