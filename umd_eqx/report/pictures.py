"""The pictures of a run directory, embedded into a page."""

import base64
from html import escape
from pathlib import Path
from typing import NamedTuple

from umd_eqx.report.rundir import RunDirectory

_PNG = b"\x89PNG\r\n\x1a\n"


class Picture(NamedTuple):
    """A picture: its name (that of its folder in `pictures/`), its step, and the bytes of its PNG file."""

    name: str
    step: int
    data: bytes


def picture_files(run: RunDirectory) -> dict[str, list[Path]]:
    """Returns the files of each picture of a run by name, oldest first.

    **Arguments:**

    - `run`: the run.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted((run.path / "pictures").glob("*/*.png")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def step_of(path: Path) -> int:
    """Returns the step of a picture, by its file name; 0 for other names.

    **Arguments:**

    - `path`: the file.
    """
    return int(path.stem) if path.stem.isdecimal() else 0


def read_picture(path: Path) -> Picture | None:
    """Returns the picture in a file, or None if it cannot be read or is not a PNG.

    **Arguments:**

    - `path`: the file.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return Picture(path.parent.name, step_of(path), data) if data.startswith(_PNG) else None


def captions(run: RunDirectory) -> dict[str, str]:
    """Returns the captions of the pictures of the evaluations, by the names of their folders.

    **Arguments:**

    - `run`: the run.
    """
    found = {}
    for evaluation, display in run.displays.items():
        found |= {f"{evaluation}-{name}": text for name, text in display.captions.items()}
    return found


def figure(picture: Picture, caption: str) -> str:
    """Returns a `<figure>` that contains the picture itself.

    **Arguments:**

    - `picture`: the picture.
    - `caption`: plain text.
    """
    source = base64.b64encode(picture.data).decode()
    alt = escape(f"{picture.name} at step {picture.step}")
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{alt}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )
