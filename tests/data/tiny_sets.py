"""Small TFDS data sets, written where a test wants them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def encode(image: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format=format)
    return buffer.getvalue()


def picture(i: int, height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, channels), np.uint8)


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of whatever records it is given."""

    name = "tiny"
    code_path = None
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: dict[str, list], features: Any, **kwargs: Any):
        self._splits, self._features = splits, features
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self._features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(records) for split, records in self._splits.items()}

    def _generate_examples(self, records):
        yield from enumerate(records)


def image_features(shape: tuple[int | None, ...], classes: int = 5):
    image = tfds.features.Image(shape=shape, encoding_format="png" if shape[-1] else None)
    return tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=classes)})


def write(root: Path, splits: dict[str, list], features: Any) -> Path:
    builder = Tiny(splits=splits, features=features, data_dir=root, file_format="array_record")
    builder.download_and_prepare(download_dir=root / "downloads")
    return Path(builder.data_dir)


CLASSES = ("ant", "bee", "cat")


def put(path: Path, image: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path, **options)
