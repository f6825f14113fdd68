"""Finds out by looking what kind of images a folder or file holds, and in which splits."""

import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.data.files import FileRecords
from umd_eqx.data.image_folder import Listing, scan
from umd_eqx.data.npz import NpzRecords
from umd_eqx.data.parquet import ParquetRecords
from umd_eqx.data.records import Records
from umd_eqx.data.splits import HELD_OUT
from umd_eqx.data.tars import TarRecords

SHARDS: Mapping[str, Callable[[Sequence[str]], Records]] = {
    ".npz": NpzRecords,
    ".tar": TarRecords,
    ".parquet": ParquetRecords,
}
"""The kinds of files that hold many images, by their extension."""

LAYOUTS = (
    "Give a folder of class folders (DIR/CLASS/IMAGE or DIR/SPLIT/CLASS/IMAGE), of images without labels, or of .npz, "
    ".tar or .parquet files with the name of their split in their names."
)

_SPLITS = ("train", *HELD_OUT)
_MOST_FOLDERS = 8
"""Folders with more subfolders than this are not searched for shards: they are class folders."""


def look(root: str) -> Callable[[], dict[str, Records]] | None:
    """Finds the images in a folder or file, without reading them.

    **Returns:** a function that opens them, by split; None if there are none. The only split of a folder whose content
    names none is `train`. The function raises `BadInput` naming `data.source.dir` if the content cannot be read.

    **Raises:** `BadInput` naming `data.source.dir` for a mixture of kinds.
    """
    if os.path.isfile(root):
        make = SHARDS.get(os.path.splitext(root)[1].lower())
        return None if make is None else lambda: {"train": make([root])}
    if not os.path.isdir(root):
        return None
    top = scan(root)
    some = top.folders if len(top.folders) <= _MOST_FOLDERS else []
    below = {name: scan(os.path.join(root, name)) for name in some}
    shards = _shards(root, ["", *below])
    if shards:
        if any(_has_images(os.path.join(root, name)) for name in top.folders):
            problem = f"{root} contains both images in folders and {os.path.basename(shards[0])}"
            raise BadInput("data.source.dir", problem, "Give the folder or the file of one of them.")
        return lambda: _open_shards(root, shards)
    if top.images and not top.folders:
        return lambda: {"train": _unlabelled(root, top.images)}
    without_classes = [name for name in below if name in _SPLITS and below[name].images and not below[name].folders]
    if below and len(without_classes) == len(below):
        return lambda: {name: _unlabelled(os.path.join(root, name), below[name].images) for name in below}
    if any(_has_images(os.path.join(root, name)) for name in top.folders):
        return lambda: _open_folder(root)
    return None


def _shards(root: str, folders: Sequence[str]) -> list[str]:
    """Returns the paths of the shards in a folder and in some of its folders, in order."""
    found = []
    for folder in folders:
        for name in sorted(os.listdir(os.path.join(root, folder))):
            path = os.path.join(root, folder, name)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SHARDS and os.path.isfile(path):
                found.append(path)
    return found


def _open_shards(root: str, paths: Sequence[str]) -> dict[str, Records]:
    kinds = {os.path.splitext(path)[1].lower() for path in paths}
    if len(kinds) > 1:
        problem = f"{root} contains files of several kinds ({', '.join(sorted(kinds))})"
        raise BadInput("data.source.dir", problem, "Give the folder or the file of one of them.")
    make = SHARDS[kinds.pop()]
    by_split: dict[str | None, list[str]] = {}
    for path in paths:
        by_split.setdefault(_split_of(os.path.relpath(path, root)), []).append(path)
    unnamed = by_split.pop(None, [])
    if unnamed and by_split:
        problem = f"{unnamed[0]} belongs to no split, but other files in {root} do ({', '.join(map(str, by_split))})"
        raise BadInput("data.source.dir", problem, "Write train, val or test into the names of all files, or of none.")
    named = {"train": unnamed} if unnamed else by_split
    return {str(split): make(some) for split, some in named.items()}


def _split_of(path: str) -> str | None:
    """Returns the split that the folder or the name of a file names, None if neither does."""
    folder, name = os.path.split(path)
    if folder in _SPLITS:
        return folder
    words = re.split(r"[^a-z]+", os.path.splitext(name)[0].lower())
    return next((word for word in words if word in _SPLITS), None)


def _has_images(folder: str) -> bool:
    content = scan(folder)
    return bool(content.images) or any(scan(os.path.join(folder, name)).images for name in content.folders)


def _unlabelled(folder: str, names: Sequence[str]) -> Records:
    return FileRecords([folder], names, np.zeros(len(names), np.int32))


def _open_folder(root: str) -> dict[str, Records]:
    listing = Listing(root)
    paths, classes = zip(*listing.folders, strict=True)
    count = len(listing.classes)
    whole = {split: listing.whole(split) for split in listing.splits}
    found = {}
    for split, files in whole.items():
        found[split] = FileRecords(paths, files.names.tolist(), files.folders, classes, count)
        found[split].class_names = listing.classes
    return found
