"""Images in .npz files: an array `images` and, unless they have no labels, an array `labels`."""

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from umd_eqx.core.errors import BadInput
from umd_eqx.data.folders import one_line
from umd_eqx.data.records import Records

_MOST_TIMES, _FREE_BYTES = 200, 64 << 20
"""The size of unpacked arrays in sizes of their file, and in bytes, above both of which a file is refused.

Deflated photographs are nearly as large as unpacked, and drawings a few dozen times smaller.
"""

_ARRAYS = "Write arrays `images`, uint8 (n, rows, columns[, 1 or 3]), and `labels`, integers (n)."


class NpzRecords(Records):
    """The rows of the arrays `images` and `labels` of some .npz files, held in memory. No pickle is loaded.

    **Arguments:** the paths of the files, in order. **Raises:** `BadInput` naming `data.source.dir`, and the file, if
    one cannot be read, if its arrays have other types or shapes, and if the files differ in size or in having labels.
    """

    def __init__(self, paths: Sequence[str]):
        self._paths = tuple(paths)
        read = [_arrays(path) for path in self._paths]
        shape, labelled = read[0][0].shape[1:], read[0][1] is not None
        for path, (images, labels) in zip(self._paths, read, strict=True):
            if images.shape[1:] != shape:
                problem = f"the images in {path} are {_size(images.shape[1:])}, and those in {paths[0]} {_size(shape)}"
                raise BadInput("data.source.dir", problem, "Use one size and number of channels.")
            if (labels is not None) != labelled:
                problem = f"only one of {paths[0]} and {path} has an array `labels`"
                raise BadInput("data.source.dir", problem, _ARRAYS)
        self._starts = np.cumsum([0, *(len(images) for images, _ in read)])
        self._images = read[0][0] if len(read) == 1 else np.concatenate([images for images, _ in read])
        self._images.flags.writeable = False
        self.size = shape[0], shape[1]
        self.labels = np.concatenate([labels for _, labels in read if labels is not None]) if labelled else None

    def __reduce__(self) -> tuple[Callable[..., "NpzRecords"], tuple[Any, ...]]:
        return NpzRecords, (self._paths,)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> UInt8[np.ndarray, "h w c"]:
        """Returns the pixels of a row, which must not be modified."""
        return self._images[row]

    def place(self, row: int) -> str:
        """Returns the file of a row, and its number there."""
        return " at row ".join(self._file_and_row(row))

    def path(self, row: int) -> str:
        """Returns the file of a row, followed by its number there."""
        return "/".join(self._file_and_row(row))

    def _file_and_row(self, row: int) -> tuple[str, str]:
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._paths[file], str(row - self._starts[file])

    def key(self, row: int) -> str:
        """Returns the number of a row."""
        return str(row)

    def nbytes(self) -> int:
        """Returns the size of the pixels."""
        return self._images.nbytes

    def files(self) -> list[tuple[str, str]]:
        """Returns the names and paths of the files."""
        return [(os.path.basename(path), path) for path in self._paths]


def _arrays(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        # np.load leaves a file that is not a zip archive open if it opens it by itself.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise BadInput("data.source.dir", f"{path} is not an .npz file", _ARRAYS)
            if "images" not in file.files:
                held = ", ".join(file.files[:10]) or "nothing"
                raise BadInput("data.source.dir", f"{path} has no array `images` (it has {held})", _ARRAYS)
            _require_bounded(path, file)
            images, labels = file["images"], file["labels"] if "labels" in file.files else None
    except BadInput:
        raise
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput("data.source.dir", f"{path} cannot be read ({one_line(error)})", "Write it again.") from error
    if images.dtype != np.uint8:
        raise BadInput("data.source.dir", f"the images in {path} are {images.dtype}, not uint8", _ARRAYS)
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise BadInput("data.source.dir", f"the images in {path} have the shape {images.shape}", _ARRAYS)
    if labels is None:
        return images, None
    if labels.dtype.kind not in "iu":
        raise BadInput("data.source.dir", f"the labels in {path} are {labels.dtype}, not integers", _ARRAYS)
    if labels.size != len(images) or labels.shape[:1] != (len(images),):
        problem = f"{path} has {len(images)} images, and labels of the shape {labels.shape}"
        raise BadInput("data.source.dir", problem, _ARRAYS)
    return images, labels.reshape(-1).astype(np.int64)


def _require_bounded(path: str, file: np.lib.npyio.NpzFile) -> None:
    """Raises `BadInput` if the arrays of a file are so much larger than the file that it was made to fill memory."""
    assert file.zip is not None
    # No more is unpacked than the directory of the archive states.
    unpacked = sum(member.file_size for member in file.zip.infolist())
    if unpacked > max(_FREE_BYTES, _MOST_TIMES * os.path.getsize(path)):
        problem = f"the arrays in {path} take {unpacked / 1e9:.1f} GB, more than {_MOST_TIMES} times the file's size"
        raise BadInput("data.source.dir", problem, "Write them with np.savez, which does not compress.")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
