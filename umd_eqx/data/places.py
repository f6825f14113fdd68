"""Where the images of a source come from."""

import os
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from umd_eqx.data.source import DataSource


@runtime_checkable
class PlacedSource(Protocol):
    """A data source that knows the path of each of its images."""

    def path_of(self, index: int) -> str:
        """Returns the path of the file of an image, or that of its container followed by its name there."""
        ...


def names_of(source: DataSource, indices: Int[np.ndarray, "n"], root: str | None, split: str) -> list[str]:
    """Returns a name for each of some images.

    **Arguments:** `root` is the folder or file of the images, None if unknown; `split` is the split that was opened.

    **Returns:** the path relative to the folder (`dog/1.png`), followed by the key in a tar file (`a.tar/0001`) or the
    row in an .npz or Parquet file (`a.npz/12`). For a source that is not a `PlacedSource`, the index in the split
    (`test[12]`).
    """
    if not isinstance(source, PlacedSource):
        return [f"{split}[{index}]" for index in indices]
    paths = [source.path_of(int(index)) for index in indices]
    if root is None:
        return paths
    folder = os.path.expanduser(root)
    folder = folder if os.path.isdir(folder) else os.path.dirname(folder) or "."
    return [os.path.relpath(path, folder) for path in paths]
