"""The file of a run's numbers."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, SupportsFloat

import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import write_atomically


def insert_row(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], step: int, row: Mapping[str, SupportsFloat]
) -> list[dict[str, Any]]:
    """Put a further row of a step into a metrics file, in one piece, behind those of this step and of earlier ones.

    It is for what is measured when the run is over: a run itself writes each step once (`MetricsFile`).

    **Arguments:**

    - `path`: the file; its folder must exist.
    - `rows`: what `read_metrics` gives of it.
    - `step`: 0 or more.
    - `row`: as for `MetricsFile.append`.

    **Returns:** all rows of the file as it is now. Raises `OSError` if the disk refuses.
    """
    before, after = ([dict(r) for r in rows if (r["step"] <= step) == early] for early in (True, False))
    together = [*before, _row(step, row), *after]
    write_atomically(path, b"".join(map(_line, together)))
    return together


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file, oldest first. A number that was NaN or infinite when it was written reads as None.

    A last line that a crash cut short is left out, and a file that is not there has no rows.

    **Arguments:**

    - `path`: a `metrics.jsonl`, one JSON object with an integer `"step"` a line.

    Raises `BadInput` where a line other than the last is not such an object.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("not a row of metrics")
        except ValueError as error:
            if number == len(lines):
                break
            hint = "Remove that line, or the file if its numbers are not needed."
            raise BadInput(f"{os.fspath(path)}, line {number}", "this is not a row of metrics", hint) from error
        rows.append(row)
    return rows


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each step once, each line on the disk before `append` returns.

    `rows` are those of the file, as `read_metrics` would give them; it grows with it.
    """

    def __init__(self, file: BinaryIO, rows: list[dict[str, Any]]):
        self._file = file
        self.rows = rows

    @classmethod
    def open(cls, path: str | os.PathLike[str], resume_step: int | None = None) -> "MetricsFile":
        """Open the file for appending, after dropping what the run is about to do again.

        **Arguments:**

        - `path`: the file on a local disk; its folder must exist.
        - `resume_step`: the step the state was restored at, 0 or more: rows of later steps, and a last line that was
          cut short, are dropped. None is a run from its start: every row is dropped.

        Raises `BadInput` if a kept file is corrupt, `OSError` if the disk refuses.
        """
        rows = [] if resume_step is None else [row for row in read_metrics(path) if row["step"] <= resume_step]
        write_atomically(path, b"".join(_line(row) for row in rows))
        # Unbuffered: a line reaches the system in one write, so only a crash of the machine can tear it.
        return cls(open(path, "ab", buffering=0), rows)

    def append(self, step: int, row: Mapping[str, SupportsFloat]) -> None:
        """Write one line.

        **Arguments:**

        - `step`: greater than that of any line before, 0 or more.
        - `row`: numbers by slash-separated name; NaN and infinities are written as null. There is no name `"step"`.

        Raises `ValueError` for a step that is not greater than the last, or a number named `"step"`; `OSError` if the
        disk refuses.
        """
        if self.rows and step <= (last := self.rows[-1]["step"]):
            raise ValueError(f"step {step} does not come after step {last}: each step is written once")
        if "step" in row:
            raise ValueError("a row of metrics cannot have a number named 'step'")
        whole = _row(step, row)
        line = _line(whole)
        while line:  # a disk that is filling up takes a part of it, and refuses the rest only when asked again
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())
        self.rows.append(whole)

    def close(self) -> None:
        """Close the file; to do it twice is harmless."""
        self._file.close()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row(step: int, row: Mapping[str, SupportsFloat]) -> dict[str, Any]:
    return {"step": int(step), **{name: _plain(value) for name, value in row.items()}}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _plain(value: SupportsFloat) -> int | float | None:
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
