"""Images whose kind was found by looking: their classes, channels and order, and the images held out for evaluation.

The order of a split, and which images are held out, follow from a hash of each image. In a data set of at most
`SMALL_COUNT` images and `SMALL_BYTES` bytes it is a hash of the pixels, so that the same images give the same batches
whatever they are stored in. In a larger one it is a hash of the name of the image (in .npz and Parquet files, of its
row).
"""

import functools
import hashlib
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.content import digest_of_files
from umd_eqx.data.looking import LAYOUTS, look
from umd_eqx.data.records import UNREADABLE, Records, RecordSource, channels_of, to_pixels
from umd_eqx.data.splits import HELD_OUT, split_parts

SMALL_COUNT, SMALL_BYTES = 20_000, 2**26
"""The largest data set whose images are all read when it is opened."""

SAMPLED = 64
"""How many images of a larger data set decide whether it is read in colour."""

SHARE = 10
"""One image in so many is held out for evaluation from a data set with a single split."""


class Part(NamedTuple):
    """The images of a split, in order: the number of their container, and their rows there."""

    which: Int[np.ndarray, "n"]
    rows: Int[np.ndarray, "n"]


class Collection:
    """The images in a folder or file, by split. See the description of this module.

    **Arguments:**

    - `root`: a local folder or file, of a kind that `look` finds.
    - `name`: the name of the data set.
    - `channels`: 1 or 3, to which all images are converted. None: 1 if all images are grey (of a larger data set, a
        sample of them), otherwise 3.
    - `classes`: the number of classes. None: as stated in the files, or counted; the labels must then be 0 .. n - 1
        without gaps.

    **Raises:** `BadInput` naming a field of the source.
    """

    def __init__(self, root: str, name: str, channels: int | None = None, classes: int | None = None):
        opened = look(root)
        if opened is None:
            raise BadInput("data.source.dir", f"{root} contains no images", LAYOUTS)
        self._root, self._name = root, name
        self._by_split = opened()
        self._records = [*self._by_split.values()]
        self._classes = _count_classes(self._by_split, classes)
        few = sum(map(len, self._records)) <= SMALL_COUNT
        self._small = few and sum(records.nbytes() for records in self._records) <= SMALL_BYTES
        self._channels = self._found_channels() if channels is None else channels

    @functools.cached_property
    def _surveyed(self) -> tuple[dict[str, list[bytes]], tuple[int | None, int | None]]:
        """The hash of each image of each split, and height and width if they are known to be common to all images."""
        if not self._small:
            hashes = {split: _hashed_names(records) for split, records in self._by_split.items()}
            stated = {records.size for records in self._records}
            return hashes, (stated.pop() if len(stated) == 1 else None) or (None, None)
        sizes: set[tuple[int, int]] = set()
        hashes = {
            split: [_hashed_pixels(records, row, self._channels, sizes) for row in range(len(records))]
            for split, records in self._by_split.items()
        }
        return hashes, sizes.pop() if len(sizes) == 1 else (None, None)

    @functools.cached_property
    def _parts(self) -> dict[str, Part]:
        hashes, _ = self._surveyed
        orders = {}
        for number, (split, some) in enumerate(hashes.items()):
            first = np.array([int.from_bytes(each[:8]) for each in some], np.uint64)
            labels = self._records[number].labels
            labels = np.zeros(len(some), np.int64) if labels is None else labels
            rows = np.lexsort((labels, first))
            orders[split] = Part(np.full(len(rows), number, np.int32), rows)
        if [*orders] == ["train"]:
            which, rows = orders["train"]
            count = -(-len(rows) // SHARE) if len(rows) > 1 else 0
            if count:
                orders = {"train": Part(which[count:], rows[count:]), "test": Part(which[:count], rows[:count])}
        return orders

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits: those of the files, or train and test where one image in ten is held out."""
        return tuple(self._parts)

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the images and labels, as 32 hexadecimal digits.

        For a small data set it depends only on pixels and labels, otherwise on the files as in `digest_of_files`.
        """
        about = f"{self._channels} channels, {self._classes} classes"
        if not self._small:
            return digest_of_files([file for records in self._records for file in records.files()], about)
        held_out = [split for split in self._by_split if split in HELD_OUT]
        lines = []
        for split, records in self._by_split.items():
            name, hashes = "test" if [split] == held_out else split, self._surveyed[0][split]
            labels = [0] * len(hashes) if records.labels is None else records.labels.tolist()
            lines += [f"{name} {label} ".encode() + each for each, label in zip(hashes, labels, strict=True)]
        total = hashlib.blake2b(about.encode(), digest_size=16)
        for line in sorted(lines):
            total.update(line)
        return total.hexdigest()

    def count(self, split: str, field: str) -> int:
        """Returns the number of images in a split or a part of one. Raises `BadInput` naming `field`."""
        return len(self._part(split, field).rows)

    def describe(self, num_train: int, num_test: int) -> DataSpec:
        """Returns facts about the data set, with the given numbers of images."""
        height, width = self._surveyed[1]
        return DataSpec(self._name, num_train, num_test, height, width, self._channels, self._classes)

    def open(self, split: str, field: str) -> RecordSource:
        """Returns the images of a split or a part of one. Raises `BadInput` naming `field`."""
        part = self._part(split, field)
        counts = [len(self._parts[split].rows) if split in self._parts else 0 for split in ("train", "test")]
        return RecordSource(self._records, part.which, part.rows, self.describe(*counts))

    def parts(self) -> dict[str, tuple[Records, Int[np.ndarray, "n"]]]:
        """Returns the container of each split, and the rows of its images there, in order."""
        return {split: (self._records[part.which[0]], part.rows) for split, part in self._parts.items()}

    def _part(self, split: str, field: str) -> Part:
        sizes = {name: functools.partial(len, part.rows) for name, part in self._parts.items()}
        chosen = split_parts(split, sizes, field=field, name=self._root)
        parts = [[column[rows] for column in self._parts[name]] for name, rows in chosen]
        which, rows = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Part(which, rows)

    def _found_channels(self) -> int:
        found = set()
        for records in self._records:
            count = len(records) if self._small else min(SAMPLED, len(records))
            for row in np.arange(count) * len(records) // max(count, 1):
                try:
                    found.add(_channels(records, int(row)))
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                    continue  # broken: it is reported when it is read for training
        return max(found, default=3)


def _channels(records: Records, row: int) -> int:
    image = records.read(row)
    if isinstance(image, np.ndarray):
        return channels_of(image)
    with Image.open(io.BytesIO(image)) as header:
        return channels_of(image, header)


def _hashed_names(records: Records) -> list[bytes]:
    keys = (records.key(row).encode("utf-8", "surrogateescape") for row in range(len(records)))
    return [hashlib.blake2b(key, digest_size=16).digest() for key in keys]


def _hashed_pixels(records: Records, row: int, channels: int, sizes: set[tuple[int, int]]) -> bytes:
    """Returns the hash of an image, and adds its height and width to `sizes`. A broken one has the hash of its key."""
    try:
        pixels = to_pixels(records.read(row), channels)
    except Exception:  # the decoders of Pillow raise various types; the image is reported when it is read for training
        return hashlib.blake2b(records.key(row).encode("utf-8", "surrogateescape"), digest_size=16).digest()
    sizes.add((pixels.shape[0], pixels.shape[1]))
    shape = f"{pixels.shape} ".encode()
    return hashlib.blake2b(shape + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()


def _count_classes(by_split: Mapping[str, Records], stated: int | None) -> int:
    """Returns the number of classes, 0 without labels. Raises `BadInput` for a class without images."""
    labelled = {split for split, records in by_split.items() if records.labels is not None}
    if not labelled:
        return 0
    if len(labelled) < len(by_split):
        other = sorted(set(by_split) - labelled)[0]
        problem = f"the split {min(labelled)} has labels, but {other} has none"
        raise BadInput("data.source.dir", problem, "Give labels to all images or to none.")
    written = [records.num_classes for records in by_split.values() if records.num_classes is not None]
    if stated is not None or written:
        return stated if stated is not None else max(written)
    each = [(records, records.labels) for records in by_split.values() if records.labels is not None]
    labels = np.concatenate([labels for _, labels in each])
    usable = np.unique(labels[(labels >= 0) & (labels != UNREADABLE)])
    gaps = np.flatnonzero(usable != np.arange(len(usable)))
    if len(gaps):
        label = int(usable[gaps[0]])
        records, row = next((r, int(np.flatnonzero(mine == label)[0])) for r, mine in each if label in mine)
        problem = f"{records.place(row)} has the label {label}, but no image has the label {gaps[0]}"
        hint = "Number the classes from 0 without gaps, or state their number: `data.source=images`, `data.classes=N`."
        raise BadInput("data.source.dir", problem, hint)
    if not len(usable):
        problem = f"none of the labels is a class (the first is {labels[0]}, {each[0][0].place(0)})"
        raise BadInput("data.source.dir", problem, "Number the classes from 0, or leave the labels out.")
    return len(usable)
