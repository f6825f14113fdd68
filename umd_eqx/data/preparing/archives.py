"""Image files inside tar files, and inside tar files within tar files, indexed once and read by offset."""

import os
import tarfile
from collections.abc import Iterator, Sequence

import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.data.folders import one_line
from umd_eqx.data.image_folder import IMAGE_SUFFIXES
from umd_eqx.data.tars import MemberRecords

_BLOCK = 512


def members(path: str, start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of the regular files in a tar file, or in one that lies between two offsets of another.

    Their `offset_data` is relative to the whole file. Names that begin with a dot are skipped.

    **Raises:** `BadInput` naming `src`, with the file and the offset, if the tar file is not one, is compressed,
    damaged or cut short.
    """
    position = start
    try:
        end = os.path.getsize(path) if end is None else end
        with open(path, "rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # keeps no headers
                    position = info.offset
                    if info.offset_data + info.size > end:
                        raise tarfile.ReadError(f"{info.name} is incomplete")
                    position = tar.offset
                    if info.isfile() and not os.path.basename(info.name).startswith("."):
                        yield info
            file.seek(position)  # tarfile takes a damaged header for the end
            block = file.read(_BLOCK)
        if position + _BLOCK > end or block.strip(b"\0"):
            raise tarfile.ReadError("there is no valid header")
    except tarfile.TarError as error:
        problem = f"{path} is not an uncompressed tar file, or is damaged or cut short, at byte {position}"
        raise BadInput("src", f"{problem} ({one_line(error)})", "Copy it again.") from error
    except OSError as error:
        raise BadInput("src", f"{path} cannot be read ({error.strerror})", "Check the file.") from error


def first_member(path: str) -> str | None:
    """Returns the name of the first file in a tar file, None if it has none. Raises `BadInput` as `members` does."""
    return next((info.name for info in members(path)), None)


def nested(path: str) -> dict[str, tuple[str, int, int]]:
    """Returns the tar files in a tar file by the stems of their names: the path, and their start and end in it.

    **Raises:** `BadInput` as `members` does, and for a member that is not a tar file.
    """
    found: dict[str, tuple[str, int, int]] = {}
    for info in members(path):
        stem, extension = os.path.splitext(os.path.basename(info.name))
        if extension != ".tar" or stem in found:
            problem = f"{path} holds {info.name} at byte {info.offset}, but should hold one tar file for each class"
            raise BadInput("src", problem, "Give the original archive.")
        found[stem] = (path, info.offset_data, info.offset_data + info.size)
    return found


def _records(found: list[tuple[int, int, int, str, int]], paths: Sequence[str], num_classes: int) -> MemberRecords:
    """Returns images from the index of the file, the offset, the size, the name and the label of each."""
    columns = [np.array([row[i] for row in found], np.int64) for i in (0, 1, 2, 4)]
    which, offsets, sizes, labels = columns
    return MemberRecords(paths, which, offsets, sizes, [row[3] for row in found], labels, num_classes)


def class_archives(archives: dict[str, tuple[str, int, int]]) -> tuple[MemberRecords, tuple[str, ...]]:
    """Returns the images in one tar file per class, and the sorted names of the classes.

    **Arguments:** for each class its tar file, and the offsets between which it lies in that file.

    **Raises:** `BadInput` naming `src` for a class without images, and as `members` does.
    """
    classes = tuple(sorted(archives))
    paths = list(dict.fromkeys(archives[name][0] for name in classes))
    numbers, found = {path: number for number, path in enumerate(paths)}, []
    for label, name in enumerate(classes):
        path, start, end = archives[name]
        images = [] if start == end else [info for info in members(path, start, end) if is_image(info.name)]
        if not images:
            problem = f"the class {name} has no images ({path} at byte {start})"
            raise BadInput("src", problem, "Copy its tar file again.")
        for info in images:
            found.append((numbers[path], info.offset_data, info.size, f"{name}/{os.path.basename(info.name)}", label))
    return _records(found, paths, len(classes)), classes


def flat_archive(path: str) -> MemberRecords:
    """Returns the images in a tar file, without labels. Raises `BadInput` naming `src` if there are none."""
    images = [info for info in members(path) if is_image(info.name)]
    if not images:
        raise BadInput("src", f"{path} contains no images", "Give the original archive.")
    found = [(0, info.offset_data, info.size, os.path.basename(info.name), -1) for info in images]
    return _records(found, [path], 0)


def is_image(name: str) -> bool:
    """Whether a file is an image by the extension of its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)
