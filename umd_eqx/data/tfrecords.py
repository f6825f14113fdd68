"""TFDS data sets in tfrecord files, read by index without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of the length, a serialised `tf.train.Example` and its
checksum (4 bytes each, `masked_crc32c`).
"""

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from umd_eqx.core.errors import BadInput
from umd_eqx.data.crc32c import masked_crc32c

_HEADER, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")


def records_of(builder: Any, split: str, decoders: Mapping[str, Any]) -> Any:
    """Returns the records of a split of a TFDS data set, array_record or tfrecord, by index.

    **Arguments:** a TFDS builder; a split that exists, or a part of one; the decoders of features, as for TFDS.

    **Returns:** an object with `__getitem__`, and `__getitems__` for several records at once.

    **Raises:** `BadInput` as `TfRecords` does, and various errors of TFDS and array_record.
    """
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        return builder.as_data_source(split=split, decoders=decoders)
    files = builder.info.splits[split].file_instructions
    takes = [file.examples_in_shard - file.skip if file.take < 0 else file.take for file in files]
    parts = [(file.filename, file.skip, take) for file, take in zip(files, takes, strict=True)]
    features = builder.info.features
    return TfRecords(parts, lambda record: features.deserialize_example_np(record, decoders=decoders))


class TfRecords:
    """The records of a split, by index. Thread-safe; the files are indexed when it is made, and opened for each record.

    **Arguments:**

    - `parts`: for each file its path, the number of records that are skipped at its beginning, and the number that are
        read.
    - `parse`: the function from the bytes of a record to its features.

    **Raises:** `BadInput` naming `data.source.dir` if a file cannot be read.
    """

    def __init__(self, parts: Sequence[tuple[epath.PathLike, int, int]], parse: Callable[[bytes], Mapping[str, Any]]):
        self._paths = [epath.Path(path) for path, _, _ in parts]
        self._parse = parse
        offsets = []
        for path, (_, skip, take) in zip(self._paths, parts, strict=True):
            *found, end = indexed(path)
            # Records that the index of a file does not reach, because it is cut short or damaged, are broken.
            found += [-end - 1] * (skip + take - len(found))
            offsets += found[skip : skip + take]
        self._offsets = np.array(offsets, np.int64)
        self._files = np.repeat(np.arange(len(parts)), [take for _, _, take in parts])

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Returns the features of a record. Raises `ValueError` if it is damaged, naming the file and the offset."""
        path, offset = self._paths[self._files[index]], int(self._offsets[index])
        if offset < 0:
            raise ValueError(f"{os.fspath(path)} is damaged or cut short at byte {-offset - 1}, before it")
        with path.open("rb") as file:
            file.seek(offset)
            length, _ = _HEADER.unpack(file.read(_HEADER.size))
            content, checksum = file.read(length), file.read(_CHECKSUM.size)
        if len(content) < length or checksum != _CHECKSUM.pack(masked_crc32c(content)):
            raise ValueError(f"{os.fspath(path)} is damaged at byte {offset}")
        return self._parse(content)

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """Returns the features of several records."""
        return [self[index] for index in indices]


def indexed(path: epath.Path) -> list[int]:
    """Returns the offset of each record of a tfrecord file, and that of its end or of the first damaged record.

    Only the lengths of records are read.

    **Raises:** `BadInput` naming `data.source.dir` if the file cannot be read.
    """
    offsets, offset = [], 0
    try:
        size = path.stat().length
        with path.open("rb") as file:
            while len(header := file.read(_HEADER.size)) == _HEADER.size:
                length, checksum = _HEADER.unpack(header)
                end = offset + _HEADER.size + length + _CHECKSUM.size
                if end > size or checksum != masked_crc32c(header[:8]):
                    break
                offsets.append(offset)
                file.seek(end)
                offset = end
    except OSError as error:
        problem = f"{os.fspath(path)} cannot be read ({error.strerror or error})"
        raise BadInput("data.source.dir", problem, "Prepare the data set again.") from error
    return [*offsets, offset]
