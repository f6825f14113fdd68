"""Atomic writing of files: after a crash, and for any reader, a file has its old or its new content, never a part."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file atomically: a temporary file beside `path` is written, synced to disk and renamed.

    **Arguments:**

    - `path`: a local file; its folder must exist.
    - `data`: the whole content.

    **Raises:** `OSError` if the file cannot be written; the old file is then unchanged.
    """
    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, with `write_atomically`. Raises `OSError` if the file cannot be written."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
