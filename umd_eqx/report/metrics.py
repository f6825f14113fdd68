"""The metrics file of a run."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, SupportsFloat

import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import write_atomically
from umd_eqx.core.json_files import parse_json, read_regular


def insert_row(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], step: int, row: Mapping[str, SupportsFloat]
) -> list[dict[str, Any]]:
    """Atomically inserts another row for a step into a metrics file, after the rows of this and of earlier steps.

    This is for metrics computed after a run has finished; the run itself writes each step once (`MetricsFile`).

    **Arguments:**

    - `path`: the file; its folder must exist.
    - `rows`: the rows of the file, from `read_metrics`.
    - `step`: the step of the row, 0 or more.
    - `row`: as for `MetricsFile.append`.

    **Returns:** all rows of the new file. Raises `OSError` if the file cannot be written.
    """
    before, after = ([dict(r) for r in rows if (r["step"] <= step) == early] for early in (True, False))
    together = [*before, _row(step, row), *after]
    write_atomically(path, b"".join(map(_line, together)))
    return together


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file, oldest first. Numbers that were NaN or infinite when written are None.

    An incomplete last line, after a crash, is ignored. A missing file has no rows.

    **Arguments:**

    - `path`: a `metrics.jsonl`, with one JSON object per line that has an integer `"step"`.

    Raises `BadInput` if a line other than the last is not such an object.
    """
    try:
        lines = read_regular(path).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
        raise BadInput(os.fspath(path), problem, "Remove it if its metrics are not needed") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("not a row of metrics")
        except ValueError as error:
            if number == len(lines):
                break
            hint = "Remove this line, or the file if its metrics are not needed."
            raise BadInput(f"{os.fspath(path)}, line {number}", "this is not a row of metrics", hint) from error
        rows.append(row)
    return rows


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, with each step once. Lines are on disk before `append` returns.

    `rows` are the rows of the file, as `read_metrics` would return them; `append` updates them.
    """

    def __init__(self, file: BinaryIO, rows: list[dict[str, Any]]):
        self._file = file
        self.rows = rows

    @classmethod
    def open(cls, path: str | os.PathLike[str], resume_step: int | None = None) -> "MetricsFile":
        """Opens the file for appending, after dropping the rows of steps that the run will repeat.

        **Arguments:**

        - `path`: the file on a local disk; its folder must exist.
        - `resume_step`: the step from which the run is resumed, 0 or more: rows of later steps and an incomplete last
          line are dropped. None starts a new run: all rows are dropped.

        Raises `BadInput` if an existing file is corrupt, and `OSError` if the file cannot be written.
        """
        rows = [] if resume_step is None else [row for row in read_metrics(path) if row["step"] <= resume_step]
        write_atomically(path, b"".join(_line(row) for row in rows))
        # Unbuffered: each line is a single write, and only a crash of the machine can leave it incomplete.
        return cls(open(path, "ab", buffering=0), rows)

    def append(self, step: int, row: Mapping[str, SupportsFloat]) -> None:
        """Writes one line.

        **Arguments:**

        - `step`: 0 or more, and greater than the step of any previous line.
        - `row`: numbers by slash-separated name, none of which is `"step"`. NaN and infinities are written as null.

        Raises `ValueError` for a step that is not greater than the last, or a number named `"step"`; `OSError` if the
        file cannot be written; `BadInput` if it was deleted or replaced since it was opened.
        """
        self._require_in_place()
        if self.rows and step <= (last := self.rows[-1]["step"]):
            raise ValueError(f"step {step} does not come after step {last}: each step is written once")
        if "step" in row:
            raise ValueError("a row of metrics cannot have a number named 'step'")
        whole = _row(step, row)
        line = _line(whole)
        while line:  # on a disk that is nearly full, a write may be partial, and only the next one fails
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())
        self.rows.append(whole)

    def _require_in_place(self) -> None:
        try:
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._file.name)):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        problem = f"{self._file.name} was deleted, renamed or replaced while the run was writing it"
        raise BadInput("run_dir", problem, "Run the same command again: it resumes from the last checkpoint")

    def close(self) -> None:
        """Closes the file. Closing it again has no effect."""
        self._file.close()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row(step: int, row: Mapping[str, SupportsFloat]) -> dict[str, Any]:
    # All rows are kept for the report, and share their names.
    return {"step": int(step), **{sys.intern(name): _plain(value) for name, value in row.items()}}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _plain(value: SupportsFloat) -> int | float | None:
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
