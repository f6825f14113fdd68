"""The manifest that `experiments/prepare.py` leaves beside the files of a data set."""

import json
import os
from typing import Any

from etils import epath

MANIFEST = "manifest.json"
"""Its entries are `settings`, `sha256` (a hash of all files), `images` by split, `files`, and `departures`."""


def read_manifest(folder: epath.PathLike) -> dict[str, Any] | None:
    """Returns the manifest of a data set in the folder of one version; None if there is none that can be read."""
    try:
        found = json.loads((epath.Path(os.fspath(folder)) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    there = isinstance(found, dict) and {"settings", "files", "sha256", "images"} <= found.keys()
    return found if there and isinstance(found["settings"], dict) else None


def resize_of(folder: epath.PathLike) -> str | None:
    """Returns the name of the resize by which the images of a data set were downsampled; None if they were not."""
    manifest = read_manifest(folder)
    named = None if manifest is None else manifest["settings"].get("resize")
    return named if isinstance(named, str) else None
