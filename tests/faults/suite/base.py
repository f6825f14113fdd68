"""The interface of a fault: what is done to runs, how often, and the figure of its row in the table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """What one trial showed."""

    passed: bool
    note: str = ""
    """What was seen, in a few words."""
    figures: Mapping[str, float] = {}
    """Measured values by name, for example `{"seconds": 3.1, "steps_lost": 0}`."""


class Trial(NamedTuple):
    """One occurrence of a fault."""

    name: str
    """Unique within the fault and stable from call to call; finished trials are recognised by it."""
    run: Callable[[Path], Outcome]
    """Takes an empty folder. An exception that it raises is a failed trial."""


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    name: str
    """The name for `--only`."""
    title: str
    """The row's name in the table."""
    trials: Callable[[bool], Sequence[Trial]]
    """Takes whether only the quick trials are asked for."""
    summary: Callable[[Sequence[Outcome]], str]
    """The row's figure, for example "identical 40/40"."""
