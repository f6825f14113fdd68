"""Image files by row: of a folder of class folders (`Listing`), or of a folder of images without labels."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from umd_eqx.data.records import Records


class FileRecords(Records):
    """Image files, each in one of some folders.

    **Arguments:**

    - `folders`: the paths of the folders.
    - `names`: the names of the files.
    - `which`: the folder of each file, an index into `folders`.
    - `classes`: the class of each folder; None for images without labels.
    - `num_classes`: the number of classes; None without labels.
    """

    def __init__(
        self,
        folders: Sequence[str],
        names: Sequence[str],
        which: Int[np.ndarray, "n"],
        classes: Sequence[int] | None = None,
        num_classes: int | None = None,
    ):
        self._folders, self._names, self._which = tuple(folders), np.asarray(names, object), which
        self.num_classes = num_classes
        self.labels = None if classes is None else np.asarray(classes, np.int64)[which]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int) -> bytes:
        """Returns the content of a file."""
        with open(self.place(row), "rb") as file:
            return file.read()

    def place(self, row: int) -> str:
        """Returns the path of a file."""
        return os.path.join(self._folders[self._which[row]], self._names[row])

    def key(self, row: int) -> str:
        """Returns the name of a file; below its class folder if it has one."""
        name = self._names[row]
        return name if self.labels is None else f"{os.path.basename(self._folders[self._which[row]])}/{name}"

    def nbytes(self) -> int:
        """Returns the size of the files."""
        return sum(os.path.getsize(self.place(row)) for row in range(len(self)))

    def files(self) -> list[tuple[str, str]]:
        """Returns the names and paths of the files."""
        return [(self.key(row), self.place(row)) for row in range(len(self))]
