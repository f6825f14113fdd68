"""The results of measurements of a finished run: the JSON files in the folder `eval` of its directory."""

import os
from pathlib import Path
from typing import Any

from umd_eqx.core.json_files import read_json


def measurements(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Returns the results of measurements on a run by the names of their files, oldest first.

    A result is a file with a list of one object. Others, and files that cannot be read, are ignored.

    **Arguments:**

    - `path`: the run directory.
    """
    found = {}
    for file in sorted((Path(path) / "eval").glob("*.json"), key=_modified):
        try:
            content = read_json(file)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
            found[file.stem] = content[0]
    return found


def _modified(file: Path) -> tuple[float, str]:
    try:
        return file.stat().st_mtime, file.name
    except OSError:
        return 0.0, file.name
