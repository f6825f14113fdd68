"""Images and their labels by index, read from TFDS data sets without TensorFlow."""

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Int, UInt8

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import NO_CLASS, DataSpec
from umd_eqx.data.content import digest_of_files
from umd_eqx.data.decoding import EncodedExample, EncodedImage
from umd_eqx.data.description import count_images, open_builder, spec_of
from umd_eqx.data.folders import find_dataset, one_line
from umd_eqx.data.prepared import resize_in
from umd_eqx.data.splits import existing_split
from umd_eqx.data.tfrecords import records_of

T = TypeVar("T")

_BLOCK = 32
"""The number of records read together: large enough to be fast, small enough not to delay the first batches."""

_MISSING = -2
"""Takes the place of the label of an image that is not cached."""


class Example(TypedDict):
    """A labelled image: `image` is uint8 (rows, columns, channels) and must not be modified; `label` is a class."""

    image: UInt8[np.ndarray, "h w c"]
    label: int


class BrokenImage(ValueError):
    """An image that cannot be read or decoded, or whose label is not a class. `index` is its index in the source."""

    def __init__(self, index: int, problem: str):
        super().__init__(index, problem)
        self.index = index

    def __str__(self) -> str:
        return f"image {self.index} is broken: {self.args[1]}"


@runtime_checkable
class DataSource(Protocol):
    """Labelled images by index. `source[i]` is always the same image, in any thread.

    `spec` describes the data set as a whole (its `num_train` and `num_test` are those of the splits `train` and
    `test`); `len(source)` is the number of images in this source.
    """

    @property
    def spec(self) -> DataSpec:
        """The description of the data set."""
        ...

    def __len__(self) -> int: ...

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the classes of the given examples, without decoding their images.

        The class is -1 for an example that cannot be read, or whose label is not a class.
        """
        ...

    def __getitem__(self, index: int) -> Example:
        """Returns the example `index`, 0 <= index < len(self).

        Raises `BrokenImage` if its image cannot be read, or its label is not in 0 .. `spec.num_classes` - 1.
        """
        ...


def require_class(index: int, label: int, num_classes: int) -> int:
    """Returns the label of an example if it is a class, 0 .. num_classes - 1, or if `num_classes` is 0.

    A network could mistake another label for "no class", which is row `num_classes` of its embedding table.

    **Raises:** `BrokenImage` for any other label.
    """
    if num_classes and not 0 <= label < num_classes:
        raise BrokenImage(index, f"its label is {label}, but the classes are 0 .. {num_classes - 1}")
    return label


def describe(name: str, data_dir: str | None, train_split: str, test_split: str) -> DataSpec:
    """Describes a data set without opening its images.

    **Arguments:** `name` and `data_dir` as in `find_dataset`; two splits, or parts of them such as "train[:99%]".

    **Returns:** the `DataSpec`: the number of images in each of the two splits, height and width (None if they vary),
    channels (1 or 3; 1 only if declared by the features) and number of classes.

    **Raises:** `BadInput` naming `data.source.dir`, `data.source.name`, `data.train_split` or `data.test_split`.
    """
    return Dataset(name, data_dir).describe(train_split, test_split)


def open_source(name: str, data_dir: str | None, split: str, *, field: str = "data.train_split") -> "TfdsSource":
    """Opens a split, or a part of one such as "train[:99%]".

    **Arguments:** as in `find_dataset`; `field` is the field named in the error for an unknown split.

    **Raises:** `BadInput` naming `data.source.dir`, `data.source.name` or `field`.
    """
    return Dataset(name, data_dir).open(split, field=field)


class Dataset:
    """A data set on disk, whose metadata are read once for all splits.

    **Arguments:** as in `find_dataset`.

    **Raises:** `BadInput` naming `data.source.dir` or `data.source.name`.
    """

    def __init__(self, name: str, data_dir: str | None):
        self._name, self._folder = name, find_dataset(name, data_dir)
        self._builder = open_builder(self._folder)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self._builder.info.splits)

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """Returns the `DataSpec` of two splits, as the function `describe` does."""
        num_train = count_images(self._builder, train_split, "data.train_split")
        return spec_of(self._builder, self._name, num_train, count_images(self._builder, test_split, "data.test_split"))

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the records and their features, as 32 hexadecimal digits (`digest_of_files`)."""
        names = sorted(path.name for path in self._folder.iterdir())
        held = [name for name in names if name == "features.json" or re.search(r"\.(array_record|tfrecord)\b", name)]
        return digest_of_files([(name, os.fspath(self._folder / name)) for name in held])

    def open(self, split: str, *, field: str = "data.train_split") -> "TfdsSource":
        """Opens a split, or a part of one. Raises `BadInput` naming `field` for an unknown or empty split."""
        return TfdsSource(self._folder, split, name=self._name, field=field, builder=self._builder)


class TfdsSource:
    """A split of a TFDS data set in array_record or tfrecord format, with images decoded by Pillow.

    If all images have the same size and the decoded split fits into `memory_limit` bytes, each image is cached on first
    access, and later epochs decode nothing. Thread-safe and picklable: an unpickled copy reopens the files.

    **Arguments:**

    - `folder`: the folder of one version, from `find_dataset`.
    - `split`: a split or a part of one.
    - `name`: the name in `spec`; None uses the name recorded by TFDS.
    - `field`: the field named in the error for an unknown or empty split.
    - `memory_limit`: the largest decoded size in bytes that is cached.
    - `builder`: the TFDS builder of the folder; None opens it.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        split: str,
        *,
        name: str | None = None,
        field: str = "data.train_split",
        memory_limit: int = 256 * 2**20,
        builder: Any = None,
    ):
        self._arguments = (os.fspath(folder), split, name, field, memory_limit)
        builder = open_builder(epath.Path(folder)) if builder is None else builder
        self._length = count_images(builder, split, field)
        whole = [builder.info.splits[s].num_examples if s in builder.info.splits else 0 for s in ("train", "test")]
        self.spec = spec_of(builder, name or builder.info.name, *whole)
        self.resize = resize_in(builder.info.description or "")
        # All images stay encoded: TFDS would decode with TensorFlow, and features such as masks are not needed.
        features = builder.info.features
        pictures = [key for key in features if isinstance(features[key], tfds.features.Image)]
        decoders = {key: tfds.decode.SkipDecoding() for key in pictures}
        try:
            self._records = records_of(builder, existing_split(split, builder.info.splits), decoders)
            first_label = int(self._records[0].get("label", 0))
        except BadInput:
            raise
        except Exception as error:  # TFDS and array_record raise many types, all caused by the files
            problem = f"'{split}' in {folder} cannot be read ({one_line(error)})"
            raise BadInput("data.source.dir", problem, "Prepare the data set again") from error
        if first_label < 0:  # TFDS writes -1 for withheld labels
            raise BadInput(field, f"'{split}' has no labels", "Use a split with labels")
        self._pixels, self._labels = self._make_room(memory_limit)

    def _make_room(self, memory_limit: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        spec = self.spec
        shape = (self._length, spec.height or 0, spec.width or 0, spec.channels)
        if 0 in shape or np.prod(shape, dtype=np.int64) > memory_limit:
            return None, None
        return np.empty(shape, np.uint8), np.full(self._length, _MISSING, np.int64)

    def __reduce__(self) -> tuple[Callable[..., "TfdsSource"], tuple[Any, ...]]:
        return _reopen, self._arguments

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(f"{index} is not in 0 .. {self._length - 1}")
        if self._pixels is None or self._labels is None:
            return self._decode(index, self._record(index))
        if self._labels[index] == _MISSING:
            self._fill(index, self._pixels, self._labels)
        image = self._pixels[index]
        image.flags.writeable = False
        return {"image": image, "label": int(self._labels[index])}

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the classes of the given examples, without decoding their images.

        The class is -1 if a record cannot be read, or its label is not in 0 .. `spec.num_classes` - 1.
        """
        if not self.spec.num_classes:
            return np.full(len(indices), NO_CLASS, np.int64)
        return np.concatenate([self._labels_of(block) for block in np.split(indices, range(4096, len(indices), 4096))])

    def _labels_of(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        wanted = [int(i) for i in indices]
        try:
            records = self._records.__getitems__(wanted)
        except Exception:  # one of them cannot be read
            records = [self._readable(i) for i in wanted]
        labels = np.array([-1 if record is None else record["label"] for record in records], np.int64)
        return np.where(labels < self.spec.num_classes, labels, -1)

    def _readable(self, i: int) -> Mapping[str, Any] | None:
        try:
            return self._record(i)
        except BrokenImage:
            return None

    def _record(self, i: int) -> Mapping[str, Any]:
        try:
            return self._records[i]
        except Exception as error:  # array_record and protobuf raise many types
            raise BrokenImage(i, one_line(error)) from error

    def encoded(self, index: int) -> EncodedExample | None:
        """Returns the example `index` before it is decoded; None if decoded images are cached. See `EncodedSource`."""
        return None if self._pixels is not None else self._header(index, self._record(index))

    def _decode(self, i: int, record: Mapping[str, Any]) -> Example:
        image, label = self._header(i, record)  # before pixels are decoded, which may take any amount of memory
        return {"image": self._guarded(i, image.pixels), "label": label}

    def _header(self, i: int, record: Mapping[str, Any]) -> EncodedExample:
        label = require_class(i, int(record.get("label", NO_CLASS)), self.spec.num_classes)
        image = self._guarded(i, lambda: EncodedImage(record["image"], self.spec.channels))
        self._require_size(i, image.height, image.width)
        return EncodedExample(image, label)

    def _guarded(self, i: int, read: Callable[[], T]) -> T:
        try:
            return read()
        except MemoryError:
            raise
        except Exception as error:  # the decoders of Pillow raise various types
            raise BrokenImage(i, one_line(error)) from error

    def _require_size(self, i: int, height: int, width: int) -> None:
        stated = (self.spec.height, self.spec.width)
        if any(size not in (None, found) for size, found in zip(stated, (height, width), strict=True)):
            raise BrokenImage(i, f"its size is {height} x {width}, not {stated[0]} x {stated[1]}")

    def _fill(self, index: int, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Caches image `index` and its neighbours: a record read alone costs 20 times as much as in a block."""
        start = index - index % _BLOCK
        missing = [i for i in range(start, min(start + _BLOCK, self._length)) if labels[i] == _MISSING]
        try:
            records = self._records.__getitems__(missing)
        except Exception:  # one of them cannot be read, but not necessarily the requested one
            missing, records = [index], [self._record(index)]
        for i, record in zip(missing, records, strict=True):
            try:
                example = self._decode(i, record)
            except BrokenImage:
                if i == index:
                    raise
                continue
            pixels[i] = example["image"]
            labels[i] = example["label"]  # last: it signals to other threads that the image is complete


def _reopen(folder: str, split: str, name: str | None, field: str, memory_limit: int) -> TfdsSource:
    return TfdsSource(folder, split, name=name, field=field, memory_limit=memory_limit)
