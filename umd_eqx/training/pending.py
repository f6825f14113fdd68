"""The row of a step whose evaluations are under way, for a run that is stopped or killed during them."""

import json
import zlib
from pathlib import Path

from umd_eqx.core.files import save_json
from umd_eqx.core.json_files import read_json

PENDING = "pending.json"
"""The file in a run directory."""


class PendingRow:
    """Keeps the row of a step on disk while the step is evaluated.

    The state is saved before it is evaluated, and the metrics of training cannot be computed again from a saved state.
    A run that is resumed at this step evaluates it, and writes the whole row.

    **Arguments:**

    - `directory`: the run directory.
    """

    def __init__(self, directory: Path):
        self._path = directory / PENDING

    def keep(self, step: int, row: dict[str, float]) -> None:
        """Atomically writes the row of a step. Raises `OSError` if it cannot be written."""
        save_json(self._path, {"step": step, "row": row, "crc32": _checksum(step, row)})

    def of(self, step: int) -> dict[str, float] | None:
        """Returns the row that was kept for a step, or None if there is none.

        It is empty if the file is damaged (see `is_damaged`): the evaluations of the step can still be made.
        """
        if not self._path.exists():
            return None
        found = self._read()
        if found is None:
            return {}
        return found[1] if found[0] == step else None

    def is_damaged(self) -> bool:
        """Whether there is a file that cannot be read, or is not as it was written."""
        return self._path.exists() and self._read() is None

    def _read(self) -> tuple[int, dict[str, float]] | None:
        try:
            content = read_json(self._path)
            step, row = int(content["step"]), {str(name): float(x) for name, x in content["row"].items()}
            if content.get("crc32", _checksum(step, row)) == _checksum(step, row):  # older versions wrote none
                return step, row
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        return None

    def clear(self) -> None:
        """Removes the file, once the row is written."""
        self._path.unlink(missing_ok=True)


def _checksum(step: int, row: dict[str, float]) -> int:
    return zlib.crc32(json.dumps([step, {name: float(x) for name, x in row.items()}]).encode())
