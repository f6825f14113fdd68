"""The end of several processes: where one fails, ends or hangs, all leave with one exit code, and one says why.

A process that fails alone would leave the others waiting in a computation for ever. JAX notices processes that are
gone, but neither why, nor those that hang. What the processes tell each other goes through the service by which they
met (`umd_eqx.core.processes`).
"""

import atexit
import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed  # JAX gives no other access to the service

from umd_eqx.core.processes import PROGRESS, service

ROOT, FAILED, ALIVE = "umd_eqx", "umd_eqx/failed", "umd_eqx/alive"
ENDED = "ended"
POLL_SECONDS = 0.5

LOST_SECONDS = 30.0
"""Seconds without a sign of life after which a process is taken to be gone. JAX itself would wait for 100."""

EXIT_LOST = 75
"""Exit code where another process was lost or hangs: EX_TEMPFAIL, by which a scheduler knows to start all again."""

PATIENCE_MS = 10_000
"""How long a process that leaves waits for the others to learn of it."""


class Peers:
    """The other processes of this one, which has joined them (`umd_eqx.core.processes.join`).

    From its construction, a thread tells the others that this process is alive, and watches them. It ends this process
    if another one fails, gives no sign of life for `LOST_SECONDS`, or does not go on for `hang_seconds`
    (`umd_eqx.core.processes.report_progress`), and if process 0, which runs the service, is gone.
    """

    def __init__(self, hang_seconds: float):
        self._hang_seconds = hang_seconds
        self.process_id = distributed.global_state.process_id
        self._finished, self._reached = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peers")
        atexit.register(self._finish)
        self._thread.start()
        threading.Thread(target=self._watch_service, daemon=True, name="service").start()

    def wait_for_loss(self) -> None:
        """Waits as long as it takes to learn that another process is lost, which ends this one."""
        time.sleep(LOST_SECONDS + 4 * POLL_SECONDS)

    def _finish(self) -> None:
        self._finished.set()
        self._thread.join(timeout=10.0)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{ALIVE}/{self.process_id}", ENDED, allow_overwrite=True)

    def _watch(self) -> None:
        beat, seen = 0, Seen()
        while not self._finished.wait(POLL_SECONDS):
            beat += 1
            try:
                _client().key_value_set(f"{ALIVE}/{self.process_id}", str(beat), allow_overwrite=True)
                said = dict(_client().key_value_dir_get(ROOT))
            except jax.errors.JaxRuntimeError:
                continue
            if self._finished.is_set():
                return
            self._reached = time.monotonic()
            if FAILED in said:
                _end(*json.loads(said[FAILED]))
            seen.update(said)
            lost, hang = seen.unchanged(ALIVE, LOST_SECONDS), seen.unchanged(PROGRESS, self._hang_seconds)
            if lost:
                leave_together(f"error: {lost} gives no sign of life for {LOST_SECONDS:.0f} s: all end", EXIT_LOST)
            if hang:
                os.write(2, f"process {self.process_id} on {socket.gethostname()}:\n".encode())
                faulthandler.dump_traceback(2)
                leave_together(f"error: {hang} did not go on for {self._hang_seconds:.0f} s: all end", EXIT_LOST)

    def _watch_service(self) -> None:
        # A thread of its own: where process 0 stands still, what the other thread asked it is never answered.
        while not self._finished.wait(POLL_SECONDS):
            if time.monotonic() - self._reached > LOST_SECONDS:
                said = f"process 0 gives no sign of life for {LOST_SECONDS:.0f} s: process {self.process_id} ends"
                _end(f"error: {said}", EXIT_LOST, say=True)


class Seen:
    """What the processes said last, by key, and when they said it first; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._since: dict[str, tuple[str, float]] = {}

    def update(self, said: Mapping[str, str]) -> None:
        """Takes in all that has been said."""
        now = self._clock()
        for key, value in said.items():
            if self._since.get(key, (None,))[0] != value:
                self._since[key] = (value, now)

    def unchanged(self, root: str, seconds: float) -> str:
        """Returns the processes that said nothing new for so long, in words; an empty text if there are none.

        Those that have ended are not among them.
        """
        now = self._clock()
        found = {
            key.rpartition("/")[2]: value
            for key, (value, since) in self._since.items()
            if key.startswith(f"{root}/") and value != ENDED and now - since > seconds
            if self._since.get(f"{ALIVE}/{key.rpartition('/')[2]}", ("",))[0] != ENDED
        }
        about = [f"process {name}{f' ({value})' if root == PROGRESS else ''}" for name, value in sorted(found.items())]
        return ", ".join([*about[:4], f"{len(about) - 4} more"] if len(about) > 4 else about)


def leave_together(message: str, code: int) -> None:
    """Ends all processes with an exit code; the first one prints the message of the first that called this.

    Returns at once in a process on its own.
    """
    client = service()
    if client is None:
        return
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
        client.key_value_set(FAILED, json.dumps([message, code]))
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process is gone, and the service with it
        message, code = json.loads(client.key_value_try_get(FAILED))
    _end(message, code)


_LEAVING = threading.Lock()


def _end(message: str, code: int, *, say: bool = False) -> NoReturn:
    _LEAVING.acquire()  # never released: where two threads come here, one waits until the process ends
    first = distributed.global_state.process_id == 0
    if first or say:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if message:
            os.write(2, f"{message}\n".encode())
    if not say:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # some process may be gone
            _client().wait_at_barrier(f"{FAILED}/all", PATIENCE_MS)
    if first:
        time.sleep(1.0)  # with this process the service ends, which would abort the others
    # Not `sys.exit`: threads may be within a computation that never ends.
    os._exit(code)


def _client() -> Any:
    return distributed.global_state.client
