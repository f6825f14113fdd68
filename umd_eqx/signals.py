"""Ctrl-C and SIGTERM, as a flag that the training loop looks at."""

import signal
from collections.abc import Callable
from types import FrameType

EXIT_STOPPED = 75
"""The exit code of a run that a signal stopped with its state saved: "try again" to a shell or a scheduler."""


class Stop:
    """A context manager in which the first Ctrl-C or SIGTERM sets `asked`, and a second Ctrl-C ends at once.

    `say` is told the first time. Outside the main thread, where Python has no signals, it does nothing.
    """

    def __init__(self, say: Callable[[str], None]):
        self.asked: str | None = None
        self._say = say
        self._old = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is None:
            self.asked = signal.Signals(number).name
            self._say(f"{self.asked}: saving after this step and its evaluations (Ctrl-C again to leave at once)")
