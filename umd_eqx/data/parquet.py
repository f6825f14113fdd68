"""Images in Parquet files as Hugging Face `datasets` writes them, in columns `image` and `label`."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.json_files import parse_json
from umd_eqx.data.folders import one_line
from umd_eqx.data.records import Records

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")
"""Accepted names of the two columns; the first that exists is read."""

CACHE = 2**30
"""How many bytes of encoded images are kept in memory, in whole row groups."""

_COLUMNS = "Use the columns `image`, a struct with the member `bytes` or binary, and `label`, integers."


class ParquetRecords(Records):
    """The rows of some Parquet files, whose images are encoded. A row group is read at once and kept, up to `CACHE`.

    **Arguments:** the paths of the files, in order. **Raises:** `BadInput` naming `data.source.dir` and the file if one
    cannot be read or lacks the columns, or if pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[str]):
        self._paths = tuple(paths)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()
        groups: list[tuple[int, int, int]] = []  # file, group in the file, first row in the file
        sizes, labels, self._bytes = [], [], 0
        for number, path in enumerate(self._paths):
            file, column, found = _opened(path)
            first = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                groups.append((number, group, first))
                sizes.append(metadata.num_rows)
                self._bytes += metadata.total_byte_size
                first += metadata.num_rows
            labels.append(found)
            if number == 0:
                self._column, self.num_classes = column, _stated_classes(file)
        if len({found is None for found in labels}) > 1:
            problem = f"only some of the files beside {self._paths[0]} have labels"
            raise BadInput("data.source.dir", problem, _COLUMNS)
        self._groups, self._starts = groups, np.cumsum([0, *sizes])
        self.labels = None if labels[0] is None else np.concatenate(labels)

    def __reduce__(self) -> tuple[Callable[..., "ParquetRecords"], tuple[Any, ...]]:
        return ParquetRecords, (self._paths,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, row: int) -> bytes:
        """Returns the encoded image of a row."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._group(group)[row - int(self._starts[group])].as_py()
        if isinstance(content, dict):
            content = content.get("bytes")
        if not content:
            raise ValueError("it has no bytes")
        return content

    def place(self, row: int) -> str:
        """Returns the file of a row, and its number there."""
        return " at row ".join(self._file_and_row(row))

    def path(self, row: int) -> str:
        """Returns the file of a row, followed by its number there."""
        return "/".join(self._file_and_row(row))

    def _file_and_row(self, row: int) -> tuple[str, str]:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        file, _, first = self._groups[group]
        return self._paths[file], str(first + row - int(self._starts[group]))

    def key(self, row: int) -> str:
        """Returns the number of a row."""
        return str(row)

    def nbytes(self) -> int:
        """Returns the size of the uncompressed columns."""
        return self._bytes

    def files(self) -> list[tuple[str, str]]:
        """Returns the names and paths of the files."""
        return [(os.path.basename(path), path) for path in self._paths]

    def _group(self, group: int) -> Any:
        """Returns the image column of a row group, from memory where possible."""
        with self._lock:  # one thread reads a group, and others that need it wait
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
            import pyarrow
            import pyarrow.parquet

            file, number, _ = self._groups[group]
            try:
                table = pyarrow.parquet.ParquetFile(self._paths[file]).read_row_group(number, columns=[self._column])
            except (OSError, pyarrow.ArrowException) as error:
                raise ValueError(f"row group {number} cannot be read ({one_line(error)})") from error
            self._kept[group] = table.column(0).combine_chunks()
            while len(self._kept) > 1 and sum(column.nbytes for column in self._kept.values()) > CACHE:
                self._kept.popitem(last=False)
            return self._kept[group]


def _opened(path: str) -> tuple[Any, str, np.ndarray | None]:
    """Returns a file, the name of its image column, and its labels."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = 'Install it: pip install "umd_eqx[parquet]"'
        raise BadInput("data.source.dir", f"{path} can only be read with pyarrow", hint) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        if image is None or not _holds_bytes(schema.field(image).type):
            held = ", ".join(schema.names[:10])
            problem = f"{path} has no column of encoded images (it has {held})"
            raise BadInput("data.source.dir", problem, _COLUMNS)
        if label is None:
            return file, image, None
        if not pyarrow.types.is_integer(schema.field(label).type):
            problem = f"the column {label} of {path} is {schema.field(label).type}, not integers"
            raise BadInput("data.source.dir", problem, _COLUMNS)
        column = file.read(columns=[label]).column(0).fill_null(-1)
        return file, image, column.to_numpy().astype(np.int64)
    except BadInput:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise BadInput("data.source.dir", f"{path} cannot be read ({one_line(error)})", "Copy it again.") from error


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _stated_classes(file: Any) -> int | None:
    """Returns the number of classes in the metadata that Hugging Face writes, or None."""
    try:
        stated = parse_json((file.schema_arrow.metadata or {})[b"huggingface"])
        features = stated["info"]["features"]
        return next(len(features[name]["names"]) for name in LABEL_COLUMNS if name in features)
    except (KeyError, ValueError, TypeError, StopIteration):
        return None
