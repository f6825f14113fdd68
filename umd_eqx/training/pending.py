"""The row of a step whose evaluations are under way, for a run that is stopped or killed during them."""

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
        save_json(self._path, {"step": step, "row": row})

    def of(self, step: int) -> dict[str, float] | None:
        """Returns the row that was kept for a step, or None. What cannot be read is no row."""
        if not self._path.exists():
            return None
        try:
            content = read_json(self._path)
            return {str(name): float(x) for name, x in content["row"].items()} if content["step"] == step else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def clear(self) -> None:
        """Removes the file, once the row is written."""
        self._path.unlink(missing_ok=True)
