"""Handling of Ctrl-C and SIGTERM: a flag for the training loop, and a clean exit outside of it.

Only the standard library is imported here, so that a program can guard its other imports (`interruptible_imports`).
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

EXIT_STOPPED = 75
"""Exit code of a run that was stopped by a signal with its state saved: EX_TEMPFAIL, "try again", of sysexits.h."""

EXIT_INTERRUPTED = 130
"""Exit code of a program that was ended by Ctrl-C with nothing saved, as shells expect (128 + SIGINT)."""


@contextlib.contextmanager
def interruptible_imports() -> Iterator[None]:
    """Context manager for the imports of a program: Ctrl-C ends the process with one line and `EXIT_INTERRUPTED`.

    The process ends in the signal handler itself, because a `KeyboardInterrupt` in the middle of an import reaches the
    caller as a traceback, or as an `ImportError` of the extension module that was being initialised. The context does
    nothing outside the main thread, where Python has no signals, and where the signal is ignored, as in a shell's
    background job.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    try:
        old = signal.signal(signal.SIGINT, lambda *_: end_interrupted("interrupted: nothing was started"))
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def end_interrupted(message: str) -> NoReturn:
    """Ends the process at once with one line on stderr and `EXIT_INTERRUPTED`.

    The interpreter is not finalised, because XLA may still be compiling or computing on its own threads, and
    finalisation would then end in a segmentation fault. Functions registered with `atexit` are not called.
    """
    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the message
    # The stream may be closed or broken, or the signal may have interrupted a write.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())
    os._exit(EXIT_INTERRUPTED)


class Stop:
    """Context manager in which the first Ctrl-C or SIGTERM sets `signal_name`, and a second Ctrl-C raises immediately.

    `warn` is called with a message the first time. Outside the main thread, where Python does not deliver signals, the
    context manager does nothing.
    """

    def __init__(self, warn: Callable[[str], None]):
        self.signal_name: str | None = None
        self._warn = warn
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
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
            self._warn(
                f"{self.signal_name}: saving after this step and its evaluations (Ctrl-C again to leave at once)"
            )
