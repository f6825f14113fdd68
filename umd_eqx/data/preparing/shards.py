"""The files of a prepared data set: which images each holds, and how one is written."""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.utils.shard_utils import ShardConfig

from umd_eqx.core.files import replacing, save_json
from umd_eqx.core.hashes import sha256_of
from umd_eqx.data.preparing.encoding import Resize, Unreadable, stored
from umd_eqx.data.preparing.originals import Originals, Selection

WRITER_OPTIONS = "group_size:1,uncompressed"
"""One record per chunk for random access, as TFDS writes them; JPEGs and PNGs are compressed already."""

PROGRESS = ".progress"
"""The folder of what is known about an unfinished preparation."""


Facts = dict[str, Any]
"""What is known about a file, as plain data: see `ensure_shard`."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that the files of a prepared data set depend on.

    - `name`, `version`: those of the data set.
    - `size`, `resize`: the side of the images and how they were downsampled to it; None at their original size.
    - `per_shard`: the number of images in a file; None for as many files as TFDS would write.
    - `source`: a fingerprint of the names, the labels and the total size of the original images.
    """

    name: str
    version: str
    size: int | None
    resize: Resize | None
    per_shard: int | None
    source: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its split, its number in the split, its name, and the images that it holds, `start` to `stop`."""

    split: str
    number: int
    name: str
    start: int
    stop: int


class Stopped(Exception):
    """Writing was stopped on request."""


def fingerprint(originals: Originals) -> str:
    """Returns a fingerprint of the names, the labels and the total size of some images, without reading them."""
    total = hashlib.sha256(json.dumps([originals.classes, originals.channels]).encode())
    for split, some in originals.splits.items():
        total.update(f"{split} {len(some.rows)} {some.records.nbytes()}\n".encode())
        for name, label in zip(some.names, some.labels.tolist(), strict=True):
            total.update(f"{name} {label}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def shards_of(settings: Settings, originals: Originals) -> list[Shard]:
    """Returns the files of a data set. Their number is that of TFDS, unless `per_shard` is given."""
    found = []
    for split, some in originals.splits.items():
        count = len(some.rows)
        number = ShardConfig.calculate_number_shards(estimated_bytes(settings, some, originals.channels), count)
        number = number if settings.per_shard is None else -(-count // settings.per_shard)
        ends = [round(count * i / number) for i in range(number + 1)]
        for i in range(number):
            name = f"{settings.name}-{split}.array_record-{i:05d}-of-{number:05d}"
            found.append(Shard(split, i, name, ends[i], ends[i + 1]))
    return found


def estimated_bytes(settings: Settings, some: Selection, channels: int) -> int:
    """Returns about how many bytes the images of a split take; downsampled ones at most that."""
    if settings.size is None:
        return int(some.records.nbytes() * len(some.rows) / max(len(some.records), 1)) + 200 * len(some.rows)
    return len(some.rows) * (settings.size**2 * channels + 300)


def features_of(settings: Settings, originals: Originals, formats: Iterable[str]) -> tfds.features.FeaturesDict:
    """Returns the features of a data set, which are those of TFDS's `imagenet2012`.

    **Arguments:** `formats` are the formats in which images are stored: "jpeg", "png" or both.
    """
    shape = (settings.size, settings.size, originals.channels)
    kind = "png" if set(formats) == {"png"} else "jpeg"
    image = tfds.features.Image(shape=shape, dtype=np.uint8, encoding_format=kind)
    label = tfds.features.ClassLabel(names=[_text(name) for name in originals.classes])
    return tfds.features.FeaturesDict({"image": image, "label": label, "file_name": tfds.features.Text()})


def ensure_shard(
    settings: Settings,
    originals: Originals,
    shard: Shard,
    folder: Path,
    known: Facts | None,
    seen: Callable[[], None],
    stopped: Callable[[], bool],
) -> Facts:
    """Writes a file, unless an intact one is there.

    **Arguments:** `known` are the facts about the file that is there, if any; `seen` is called for each image, and
    `stopped` is asked before each whether to stop.

    **Returns:** facts about the file: `name`, `split`, `number` of the file, `records`, `bytes` of the records,
    `sha256`, the names of `broken` images with what is wrong, and of `converted` ones with their original format,
    `formats`, and whether it was `kept`.

    **Raises:** `Stopped`; `OSError` if it cannot be written.
    """
    if known is not None and _hash(folder / shard.name, stopped) == known["sha256"]:
        for _ in range(shard.start, shard.stop):
            seen()
        return {**known, "kept": True}
    records, known = _records(settings, originals, shard, seen, stopped)
    path = folder / shard.name
    with replacing(path) as unfinished:
        _write(unfinished, records)
    known["sha256"] = _hash(path, lambda: False)
    save_json(folder / PROGRESS / f"{shard.name}.json", known)
    return {**known, "kept": False}


def _records(
    settings: Settings, originals: Originals, shard: Shard, seen: Callable[[], None], stopped: Callable[[], bool]
) -> tuple[list[bytes], Facts]:
    """Returns the records of a file, and facts about it. Images are read in the order in which they lie."""
    some, features = originals.splits[shard.split], features_of(settings, originals, ())
    serialiser = ExampleSerializer(cast(Any, features.get_serialized_info()))
    records: dict[int, bytes] = {}
    broken: dict[int, list[str]] = {}
    converted: dict[int, list[str]] = {}
    formats: set[str] = set()
    for i in sorted(range(shard.start, shard.stop), key=lambda i: int(some.rows[i])):
        if stopped():
            raise Stopped
        row, label, name = int(some.rows[i]), int(some.labels[i]), _text(some.names[i])
        try:
            if not 0 <= label < len(originals.classes):
                raise Unreadable(f"its label is not in 0 .. {len(originals.classes) - 1}")
            try:
                content = some.records.read(row)
            except (OSError, ValueError) as error:
                raise Unreadable(getattr(error, "strerror", None) or str(error)) from error
            image, change = stored(content, name, originals.channels, settings.size, settings.resize or "box")
            example = features.encode_example({"image": image, "label": label, "file_name": name})
            # Otherwise the features of a record are in a different order in each process.
            records[i] = serialiser.get_tf_example(example).SerializeToString(deterministic=True)
            formats.add("png" if image.startswith(b"\x89PNG") else "jpeg")
            if change is not None:
                converted[i] = [name, change]
        except Unreadable as error:
            broken[i] = [name, str(error), some.records.place(row)]
        seen()
    facts = {"name": shard.name, "split": shard.split, "number": shard.number, "records": len(records)}
    facts["bytes"] = sum(map(len, records.values()))
    facts |= {kind: [held[i] for i in sorted(held)] for kind, held in (("broken", broken), ("converted", converted))}
    return [records[i] for i in sorted(records)], facts | {"formats": sorted(formats)}


def _write(path: Path, records: list[bytes]) -> None:
    try:
        writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # raised by array_record for a full disk
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _hash(path: Path, stopped: Callable[[], bool]) -> str | None:
    """Returns the SHA-256 of a file, None if it cannot be read."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**22):
                if stopped():
                    raise Stopped
                total.update(block)
    except OSError:
        return None
    return total.hexdigest()


def _text(name: str) -> str:
    """Returns a file name as valid Unicode; bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def content_hash(files: Iterable[tuple[str, str]]) -> str:
    """Returns a hash of a whole data set from the names and hashes of its files."""
    return sha256_of(f"{name} {digest}\n".encode() for name, digest in sorted(files))
