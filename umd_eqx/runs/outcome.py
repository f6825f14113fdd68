"""The result of a run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umd_eqx.training.signals import EXIT_STOPPED


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run: its directory, its last step, the signal that stopped it, if any, and its last metrics."""

    run_dir: Path
    step: int
    stopped_by: str | None
    last: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def exit_code(self) -> int:
        """0, or 75 if a signal stopped the run."""
        return 0 if self.stopped_by is None else EXIT_STOPPED
