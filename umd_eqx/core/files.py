"""Atomic writing of files: after a crash, and for any reader, a file has its old or its new content, never a part."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, suffix: str | None = None) -> Iterator[Path]:
    """A context that yields the name of a new file beside `path`, which replaces `path` when the block ends.

    The block writes and closes the new file, for example with a library that needs a name. It is then synced to disk
    and renamed, or deleted if an exception was raised.

    **Arguments:**

    - `path`: a local file; its folder must exist.
    - `suffix`: what the name of the new file ends in. The default is different for every process. With a fixed suffix,
        the file that a killed process leaves is overwritten by the next one; only one at a time may write.

    **Raises:** `OSError` if the file cannot be synced or renamed; the old file is then unchanged.
    """
    temporary = Path(f"{os.fspath(path)}{f'.{os.getpid()}.tmp' if suffix is None else suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file atomically, with `replacing`.

    **Arguments:**

    - `path`: a local file; its folder must exist.
    - `data`: the whole content.

    **Raises:** `OSError` if the file cannot be written; the old file is then unchanged.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def save_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, with `write_atomically`. Raises `OSError` if the file cannot be written."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
