"""Images in tar files named as in WebDataset: the members `KEY.jpg` and `KEY.cls` are an image and its class."""

import os
import tarfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from umd_eqx.core.errors import BadInput
from umd_eqx.core.json_files import parse_json
from umd_eqx.data.folders import one_line
from umd_eqx.data.image_folder import IMAGE_SUFFIXES
from umd_eqx.data.records import UNREADABLE, Records

_NAMING = "Name the members of an image KEY.png (or .jpg, ...) and KEY.cls, which holds the number of its class."
_BLOCK = 512
_MOST_LABEL_BYTES = 1 << 20


class _Member(NamedTuple):
    """An image in a tar file: its key, the offset and size of its content (0 if it is missing), and its label."""

    key: str
    offset: int
    size: int
    label: int | None


class MemberRecords(Records):
    """Image files that lie at known offsets of other files.

    **Arguments:**

    - `paths`: the files.
    - `which`, `offsets`, `sizes`: for each image, the index of its file, and where it is in that file, in bytes.
    - `keys`: the name of each image.
    - `labels`: the class of each image; None if the images have no labels.
    - `num_classes`: the number of classes; None if it is not known.
    """

    def __init__(
        self,
        paths: Sequence[str],
        which: Int[np.ndarray, "n"],
        offsets: Int[np.ndarray, "n"],
        sizes: Int[np.ndarray, "n"],
        keys: Sequence[str],
        labels: Int[np.ndarray, "n"] | None,
        num_classes: int | None = None,
    ):
        self._paths, self._which, self._offsets, self._sizes = tuple(paths), which, offsets, sizes
        self._keys, self.labels, self.num_classes = tuple(keys), labels, num_classes

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, row: int) -> bytes:
        """Returns the encoded image of a row."""
        size = int(self._sizes[row])
        if not size:
            raise ValueError("it has no image")
        with open(self._paths[self._which[row]], "rb") as file:
            file.seek(self._offsets[row])
            content = file.read(size)
        if len(content) < size:
            raise ValueError("the file ends within it")
        return content

    def place(self, row: int) -> str:
        """Returns the file of a row, its offset in bytes, and its key."""
        return f"{self._paths[self._which[row]]} at byte {self._offsets[row]} ({self._keys[row]})"

    def path(self, row: int) -> str:
        """Returns the file of a row, followed by its key."""
        return f"{self._paths[self._which[row]]}/{self._keys[row]}"

    def key(self, row: int) -> str:
        """Returns the key of a row."""
        return self._keys[row]

    def nbytes(self) -> int:
        """Returns the size of the encoded images."""
        return int(self._sizes.sum())

    def files(self) -> list[tuple[str, str]]:
        """Returns the names and paths of the files."""
        return [(os.path.basename(path), path) for path in self._paths]


class TarRecords(MemberRecords):
    """The images in some tar files, which are indexed once and read by offset; nothing is extracted.

    As in WebDataset, the key of a member is its path up to the first dot of the file name, and members with the same
    key that follow one another belong together. The class of an image is the number in the member `.cls`, or `label`
    in the member `.json`.

    **Arguments:** the paths of the files, in order. **Raises:** `BadInput` naming `data.source.dir`, with file and
    offset, for a file that is not an uncompressed tar file, is cut short, or has several images with one key.
    """

    def __init__(self, paths: Sequence[str]):
        indexed = [_indexed(path) for path in paths]
        members = [member for each in indexed for member in each]
        if not members:
            raise BadInput("data.source.dir", f"{paths[0]} contains no images", _NAMING)
        labels = [member.label for member in members]
        unlabelled = all(label is None for label in labels)
        super().__init__(
            paths,
            np.repeat(np.arange(len(indexed)), [len(each) for each in indexed]),
            np.array([member.offset for member in members], np.int64),
            np.array([member.size for member in members], np.int64),
            [member.key for member in members],
            None if unlabelled else np.array([UNREADABLE if n is None else n for n in labels], np.int64),
        )

    def __reduce__(self) -> tuple[Callable[..., "TarRecords"], tuple[Any, ...]]:
        return TarRecords, (self._paths,)


def _indexed(path: str) -> list[_Member]:
    """Returns the images in a tar file. Reads headers and labels only."""
    found: list[_Member] = []
    last, end = None, 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members, end = [], tar.offset  # pyright: ignore[reportAttributeAccessIssue]  # keeps no headers
                folder, name = os.path.split(info.name)
                if not info.isfile() or name.startswith("."):
                    continue
                stem, _, extension = name.partition(".")
                if (key := os.path.join(folder, stem)) != last:
                    found.append(_Member(key, 0, 0, None))
                    last = key
                found[-1] = _with(found[-1], info, extension.lower(), tar, path)
        with open(path, "rb") as file:  # tarfile takes a damaged header for the end
            file.seek(end)
            block = file.read(_BLOCK)
        if len(block) < _BLOCK or block.strip(b"\0"):
            raise tarfile.ReadError("there is no valid header")
    except tarfile.TarError as error:
        problem = f"{path} is damaged or cut short at byte {min(end, os.path.getsize(path))} ({one_line(error)})"
        raise BadInput("data.source.dir", problem, "Copy it again, and do not compress it.") from error
    except OSError as error:
        raise BadInput("data.source.dir", f"{path} cannot be read ({error.strerror})", "Check the file.") from error
    return [member for member in found if member.size or member.label is not None]


def _with(member: _Member, info: tarfile.TarInfo, extension: str, tar: tarfile.TarFile, path: str) -> _Member:
    last = extension.rpartition(".")[2]
    if f".{last}" in IMAGE_SUFFIXES:
        if member.size:
            problem = f"{path} has two images with the key {member.key}, the second at byte {info.offset}"
            raise BadInput("data.source.dir", problem, _NAMING)
        return member._replace(offset=info.offset_data, size=info.size)
    if last not in ("cls", "json"):
        return member
    content = tar.extractfile(info)
    if content is None:
        return member
    return member._replace(label=_label(content.read(_MOST_LABEL_BYTES + 1), last, member.label))


def _label(content: bytes, extension: str, otherwise: int | None) -> int | None:
    try:
        held = parse_json(content, _MOST_LABEL_BYTES)  # the content of .cls is a number, which is valid JSON
    except ValueError:
        held = None
    number = held.get("label") if isinstance(held, dict) else held
    if type(number) is int and abs(number) < 2**31:
        return number
    return UNREADABLE if extension == "cls" else otherwise
