"""Images in containers of any kind, read by row: the interface of the kinds, and the data source made from rows."""

import abc
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from umd_eqx.core.types import NO_CLASS, DataSpec
from umd_eqx.data.decoding import EncodedExample, EncodedImage, decode_image
from umd_eqx.data.folders import one_line
from umd_eqx.data.source import BrokenImage, Example, require_class

T = TypeVar("T")

UNREADABLE = -(2**31)
"""The label of a row whose label cannot be read. Unlike other values, it is never taken for a class out of range."""


class Records(abc.ABC):
    """The images of one split, by row, as one or more files hold them.

    `read`, `place` and `key` may be called from any thread. A copy made by pickle opens the files again.

    - `labels`: the class of each row as it is stored, not yet checked; `UNREADABLE` where it cannot be read. None if
      the images have no labels.
    - `num_classes`: the number of classes that the files state; None if they state none.
    - `class_names`: the names of the classes; None if they have none.
    - `size`: height and width of all images, None if they may differ.
    """

    labels: Int[np.ndarray, "n"] | None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, row: int) -> bytes | UInt8[np.ndarray, "h w c"]:
        """Returns the encoded image of a row, or its pixels. Raises `OSError` or `ValueError` if it cannot be read."""

    @abc.abstractmethod
    def place(self, row: int) -> str:
        """Returns where a row is, for messages: its file and its offset or number in the file."""

    def path(self, row: int) -> str:
        """Returns the path of a row: that of its file or, in a file of several images, that followed by its name there.

        By default, `place`.
        """
        return self.place(row)

    @abc.abstractmethod
    def key(self, row: int) -> str:
        """Returns the name of a row, which does not depend on the location of the files."""

    @abc.abstractmethod
    def nbytes(self) -> int:
        """Returns about how many bytes `read` returns for all rows together."""

    @abc.abstractmethod
    def files(self) -> Sequence[tuple[str, str]]:
        """Returns the files that hold the rows: their names relative to the data set, and their paths."""


def channels_of(image: bytes | UInt8[np.ndarray, "h w c"], header: Image.Image | None = None) -> int:
    """Returns the channels that an image needs: 1 for grey (with or without transparency), otherwise 3.

    `header` is the image opened by Pillow; required unless `image` holds pixels.
    """
    if isinstance(image, np.ndarray):
        return image.shape[2]
    assert header is not None
    return 1 if header.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F") else 3


def to_pixels(image: bytes | UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w channels"]:
    """Returns the pixels of an image in 1 or 3 channels, converted where they differ.

    **Raises:** any exception of Pillow on corrupt data.
    """
    if isinstance(image, bytes):
        return decode_image(image, channels)
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


class RecordSource:
    """A data source of some rows of `Records`, decoded on access. Thread-safe and picklable.

    **Arguments:**

    - `records`: the containers.
    - `which`, `rows`: for each image of the source, in order, the number of its container and its row there.
    - `spec`: facts about the data set; images are converted to its `channels`. Without classes, every label is
        `NO_CLASS`.
    """

    def __init__(
        self, records: Sequence[Records], which: Int[np.ndarray, "n"], rows: Int[np.ndarray, "n"], spec: DataSpec
    ):
        self._records, self._which, self._rows, self.spec = tuple(records), which, rows, spec
        self._labels = np.full(len(rows), NO_CLASS, np.int64)
        for number, some in enumerate(self._records):
            if some.labels is not None:
                mine = which == number
                self._labels[mine] = some.labels[rows[mine]]

    def __len__(self) -> int:
        return len(self._rows)

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the classes of the given images, -1 where the label is not a class. No image is read."""
        labels = self._labels[indices]
        return np.where((labels >= 0) & (labels < self.spec.num_classes), labels, NO_CLASS)

    def path_of(self, index: int) -> str:
        """Returns the path of an image (`Records.path`)."""
        return self._records[self._which[index]].path(int(self._rows[index]))

    def __getitem__(self, index: int) -> Example:
        """Image `index`. Raises `BrokenImage` if it cannot be read or decoded, or if its label is not a class."""
        image, label = self._read(index, lambda image: to_pixels(image, self.spec.channels))
        return {"image": image, "label": label}

    def encoded(self, index: int) -> EncodedExample | None:
        """Image `index` before it is decoded, None if its container holds pixels. Raises `BrokenImage` as above."""

        def opened(image: bytes | np.ndarray) -> EncodedImage | None:
            return EncodedImage(image, self.spec.channels) if isinstance(image, bytes) else None

        image, label = self._read(index, opened)
        return None if image is None else EncodedExample(image, label)

    def _read(self, index: int, decode: Callable[[bytes | np.ndarray], T]) -> tuple[T, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in 0 .. {len(self) - 1}")
        records, row = self._records[self._which[index]], int(self._rows[index])
        label = int(self._labels[index])
        try:
            if label == UNREADABLE:
                raise ValueError("its label cannot be read")
            require_class(index, label, self.spec.num_classes)
            image = decode(records.read(row))
        except MemoryError:
            raise
        except Exception as error:  # the decoders of Pillow raise various types
            problem = error.args[1] if isinstance(error, BrokenImage) else one_line(error)
            raise BrokenImage(index, f"{records.place(row)}: {problem}") from error
        return image, label
