"""Files that are written in one piece: a reader, or a crash, finds the old content or the new one, never a part."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a temporary file beside `path`, waits until the disk has it, and renames it.

    **Arguments:**

    - `path`: a local file; its folder must exist.
    - `data`: the whole content.

    **Raises:** `OSError` if the disk refuses; the old file is then as it was.
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
    """Writes `value` as indented JSON by `write_atomically`. Raises `OSError` if the disk refuses."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
