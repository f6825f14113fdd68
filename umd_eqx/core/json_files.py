"""JSON that others wrote: read with bounds on its size, its nesting and its numbers, and from regular files alone."""

import errno
import json
import os
import re
import stat
from typing import Any, Protocol, runtime_checkable

MOST_BYTES = 16 << 20
"""The size in bytes above which a JSON file is refused. Those of this package have kilobytes, or a few megabytes."""

MOST_DEPTH = 64
"""The depth of lists and objects in each other above which JSON is refused."""

MOST_VALUES = 1 << 20
"""The number of lists, objects and separators above which JSON is refused: the memory that a value takes is bounded."""

MOST_DIGITS = 64
"""The number of digits above which an integer is refused."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_MARKS = re.compile(rb"[\[\]{},]")


@runtime_checkable
class Readable(Protocol):
    """A path on a disk or in a bucket."""

    def read_bytes(self) -> bytes:
        """Returns the content of the file."""
        ...


def read_json(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> Any:
    """Reads a JSON file that may come from anywhere, in bounded time and memory.

    **Arguments:**

    - `path`: a file on a disk.
    - `most_bytes`: the size above which it is refused.

    **Raises:** `OSError` if it is missing, unreadable, or not a regular file (a folder, a device, a pipe, whose reading
    would block); `ValueError` as `parse_json` does.
    """
    return parse_json(read_regular(path, most_bytes + 1), most_bytes)


def read_regular(path: str | os.PathLike[str], most_bytes: int = -1) -> bytes:
    """Returns the first `most_bytes` bytes of a regular file, or all of them.

    **Raises:** `OSError` if it is missing, unreadable, or not a regular file.
    """
    # A pipe without a writer would block here already, but for the flag.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return file.read(most_bytes)


def read_json_anywhere(path: Readable, most_bytes: int = MOST_BYTES) -> Any:
    """Reads a JSON file on a disk, as `read_json` does, or in a bucket, where there are files alone."""
    if "://" in str(path):
        return parse_json(path.read_bytes(), most_bytes)
    return read_json(str(path), most_bytes)


def parse_json(content: bytes, most_bytes: int = MOST_BYTES) -> Any:
    """Returns the value of a JSON text.

    **Raises:** `ValueError` if it is not JSON in UTF-8, longer than `most_bytes`, nested more deeply than `MOST_DEPTH`,
    has more values than `MOST_VALUES`, or an integer of more than `MOST_DIGITS` digits.
    """
    if len(content) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes of JSON")
    depth = 0
    marks = _MARKS.findall(_STRING.sub(b"", content))
    if len(marks) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values in JSON")
    for mark in marks:
        if mark in b"[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise ValueError(f"JSON nested more than {MOST_DEPTH} deep")
        elif mark in b"]}":
            depth -= 1
    return json.loads(content.decode(), parse_int=_int)


def _int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits in JSON")
    return int(digits)
