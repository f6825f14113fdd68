"""Keeps from the terminal what orbax writes to it."""

import dataclasses
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any


def silence_orbax() -> None:
    """Silences the logs and the warnings of orbax, whose errors are raised as exceptions as well."""
    # orbax logs profusely at INFO, warns about its own defaults, and logs each error with a traceback. When it leaves
    # its event loop, each pending array prints another traceback, or a warning that it was never awaited: hundreds for
    # a full disk. Its errors are raised as exceptions as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_not_duplicate)
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _WithoutDuplicates):
        sys.unraisablehook = _WithoutDuplicates(sys.unraisablehook)


def _is_not_duplicate(record: logging.LogRecord) -> bool:
    return not any(
        echo in record.getMessage() for echo in ("exception was never retrieved", "destroyed but it is pending")
    )


@dataclasses.dataclass(frozen=True)
class _WithoutDuplicates:
    report: Callable[[Any], object]

    def __call__(self, unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            self.report(unraisable)
