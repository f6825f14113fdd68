"""Handling of Ctrl-C and SIGTERM: a flag for the training loop, and a clean exit outside of it.

Python runs the handlers of signals between two steps of its main thread, so that none runs while XLA compiles. Where
nothing is unsaved, a thread that learns of signals at once ends the process instead (`Watch`).

Only the standard library is imported here, so that a program can guard its other imports (`interruptible_imports`).
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

EXIT_STOPPED = 75
"""Exit code of a run that was stopped by a signal with its state saved: EX_TEMPFAIL, "try again", of sysexits.h."""

EXIT_INTERRUPTED = 130
"""Exit code of a program that was ended by Ctrl-C with nothing saved, as shells expect (128 + SIGINT)."""

Handler = Callable[[int, FrameType | None], Any]


class Watch:
    """Context manager in which a thread is told of signals at once, whatever the main thread is doing.

    Outside the main thread, where Python has no signals, the context manager does nothing.

    **Arguments:**

    - `numbers`: the signals.
    - `handler`: their handler, which Python calls in the main thread when it can.
    - `told`: called with the number of each signal, in the thread.
    - `ignored`: whether signals are handled that the process was started to ignore, as in a shell's background job.
    """

    def __init__(self, numbers: Sequence[int], handler: Handler, told: Callable[[int], None], *, ignored: bool = False):
        self._numbers, self._handler, self._told, self._ignored = numbers, handler, told, ignored
        self.replaced: dict[int, Any] = {}
        """The handlers that were in force before, by the numbers of the signals."""

    def __enter__(self) -> "Watch":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._before = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        for number in self._numbers:
            before = signal.getsignal(number)
            if before is not None and (self._ignored or before is not signal.SIG_IGN):
                self.replaced[number] = signal.signal(number, self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self.replaced.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
        os.close(self._in)
        self._thread.join()
        os.close(self._out)

    def _listen(self) -> None:
        while numbers := os.read(self._out, 64):
            for number in numbers:
                if number in self.replaced:
                    self._told(number)


class EndsProcess:
    """A handler of SIGTERM by which code can see that the program owns its process, and may end it: see `Stop`."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Does nothing: the thread of `Watch` ends the process."""


def interruptible_imports() -> Watch:
    """Context manager for the imports of a program: a signal ends the process with one line.

    Ctrl-C ends it with `EXIT_INTERRUPTED`, and SIGTERM with `EXIT_STOPPED`, by which a scheduler knows to start it
    again. The process ends in a thread, because a `KeyboardInterrupt` in the middle of an import reaches the caller as
    a traceback, or as an `ImportError` of the extension module that was being initialised. Signals that are ignored, as
    in a shell's background job, stay so.
    """

    def told(number: int) -> None:
        if number == signal.SIGINT:
            end_interrupted("interrupted: nothing was started")
        end_stopped("stopped by SIGTERM: nothing was started")

    return Watch((signal.SIGINT, signal.SIGTERM), lambda *_: None, told)


def ending_on_sigterm() -> Watch:
    """Context manager for a program that owns its process: SIGTERM ends it at once, with one line and `EXIT_STOPPED`.

    That is so outside the contexts of `Stop`, where a run has something to save.
    """
    said = "stopped by SIGTERM: what was saved is unchanged. The same command starts it again"
    return Watch((signal.SIGTERM,), EndsProcess(), lambda _: end_stopped(said))


def end_interrupted(message: str) -> NoReturn:
    """Ends the process at once with one line on stderr and `EXIT_INTERRUPTED`.

    The interpreter is not finalised, because XLA may still be compiling or computing on its own threads, and
    finalisation would then end in a segmentation fault. Functions registered with `atexit` are not called.
    """
    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the message
    _end(message, EXIT_INTERRUPTED, 2)


def end_stopped(message: str) -> NoReturn:
    """Ends the process as `end_interrupted` does, with one line on stdout and `EXIT_STOPPED`."""
    _end(message, EXIT_STOPPED, 1)


def _end(message: str, code: int, descriptor: int) -> NoReturn:
    # The stream may be closed or broken, or the signal may have interrupted a write.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{message}\n".encode())
    os._exit(code)


class Stop:
    """Context manager in which the first Ctrl-C or SIGTERM sets `signal_name`, and a second Ctrl-C raises immediately.

    In the contexts of `unsaved_nothing`, a signal ends the process at once if the program owns it (`EndsProcess`).
    Outside the main thread, where Python does not deliver signals, the context manager does nothing.

    **Arguments:**

    - `warn`: called with a message at the first signal.
    - `leave`: called with the name of the signal and the step before the process is ended; returns the last line.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        leave: Callable[[str, int], str] = lambda name, step: f"stopped by {name} at step {step}, saved",
    ):
        self.signal_name: str | None = None
        self._warn, self._leave = warn, leave
        self._watch = Watch((signal.SIGINT, signal.SIGTERM), self._handle, self._told, ignored=True)
        self._guard, self._names = threading.Lock(), []
        self._region: tuple[int, Callable[[], None], int] | None = None

    def __enter__(self) -> "Stop":
        self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__()

    @contextlib.contextmanager
    def unsaved_nothing(
        self, step: int, committed: Callable[[], None] = lambda: None, *, obeyed: int = 0
    ) -> Iterator[None]:
        """A context in which everything up to `step` is saved once `committed` returns: a signal ends the process.

        A signal that came before does so as well, but for the first `obeyed` ones.
        """
        with self._guard:
            self._region = (step, committed, obeyed)
            self._leave_if_asked()
        try:
            yield
        finally:
            with self._guard:
                self._region = None

    def _told(self, number: int) -> None:
        with self._guard:
            self._names.append(signal.Signals(number).name)
            self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        owned = isinstance(self._watch.replaced.get(signal.SIGTERM), EndsProcess)
        if not owned or self._region is None or len(self._names) <= self._region[2]:
            return
        step, committed, _ = self._region
        try:
            committed()
        except Exception:  # raised again in the main thread, when it needs the save
            return
        end_stopped(self._leave(self._names[0], step))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
            self._warn(f"{self.signal_name}: saving after this step (Ctrl-C again to leave at once)")
