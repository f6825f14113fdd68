"""What `experiments/prepare.py` leaves beside the files of a data set: its manifest, and the name of the resize."""

import os
import re
from typing import Any

from etils import epath

from umd_eqx.core.json_files import read_json_anywhere

MANIFEST = "manifest.json"
"""Its entries are `settings`, `sha256` (a hash of all files), `images` by split, `files`, and `departures`."""


def read_manifest(folder: epath.PathLike) -> dict[str, Any] | None:
    """Returns the manifest of a data set in the folder of one version; None if there is none that can be read."""
    try:
        found = read_json_anywhere(epath.Path(os.fspath(folder)) / MANIFEST)
    except (OSError, ValueError):
        return None
    there = isinstance(found, dict) and {"settings", "files", "sha256", "images"} <= found.keys()
    return found if there and isinstance(found["settings"], dict) else None


def description_of(size: int | None, resize: str | None) -> str:
    """Returns the description of a prepared data set, which TFDS keeps in `dataset_info.json`."""
    resized = "" if resize is None else f" Downsampled to {size} px by the resize '{resize}'."
    return f"Images with labels, prepared by umd_eqx.{resized}"


def resize_in(description: str) -> str | None:
    """Returns the name of the resize in the description of a data set; None if its images were not downsampled."""
    found = re.fullmatch(
        r"Images with labels, prepared by umd_eqx\. Downsampled to \d+ px by the resize '(\w+)'\.", description
    )
    return None if found is None else found[1]


def resize_of(source: object) -> str | None:
    """Returns the name of the resize by which the images of a data source were downsampled; None if it is not known."""
    return getattr(source, "resize", None)
