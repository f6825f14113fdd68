"""Copying checkpoints to a mirror while a run trains, in a thread of its own that never stops or changes the run."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from etils import epath

from umd_eqx.core.remote import reason
from umd_eqx.training.checkpoint import FOLDER, SEAL, damage_of
from umd_eqx.training.mirror import Mirror, link_tree, pack

STAGING = ".mirror.tmp"
"""The folder in a run directory that keeps a checkpoint, by links to its files, until it is copied."""

PATIENCE, HURRIED, TOLD = 120.0, 20.0, 3.0
"""At the end of a run: the seconds in which some file must be copied for it to wait on; the seconds in all where a
signal or an error ends it; and the seconds after which it says what it waits for."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""The seconds before a failed copy is tried again, doubled each time."""

LAST_TRIES = 3
"""How often a copy is tried at the end of a run."""


class Mirroring:
    """Context manager in which the newest sealed checkpoint is copied to a mirror, in a thread.

    If copying is slower than saving, checkpoints between are left out. If it fails, that is said once, and it is tried
    again until it succeeds, a newer checkpoint takes its place, or the run ends.

    **Arguments:**

    - `mirror`: where to. None: nothing is copied.
    - `run_dir`: the run directory, which this process alone writes to.
    - `keep`: the number of checkpoints to keep at the mirror.
    - `say`: called with lines of text, from any thread.
    - `pause`: the seconds before the first repetition.
    """

    def __init__(
        self,
        mirror: Mirror | None,
        run_dir: Path,
        keep: int,
        say: Callable[[str], None],
        *,
        pause: float = FIRST_PAUSE,
    ):
        self._mirror, self._run_dir, self._keep, self._say = mirror, run_dir, keep, say
        self._pause, self._changed = pause, threading.Condition()
        self._wanted: int | None = None
        self._done: int | None = None
        self._trouble: str | None = None
        self._closing = self._finished = False
        self._tries = LAST_TRIES
        self._moved_at = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> "Mirroring":
        shutil.rmtree(self._run_dir / STAGING, ignore_errors=True)  # of a process that was killed
        if self._mirror is not None:
            self._mirror = Mirror(self._mirror.remote, self._moved)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.finish(hurry=kind is not None)

    def push(self, step: int) -> None:
        """Asks for the copy of the checkpoint of a step, and returns at once. Any thread may call it.

        One without a seal, from a process that was killed before it was written, is not copied.
        """
        if not (self._run_dir / FOLDER / str(step) / SEAL).exists():
            return
        with self._changed:
            self._wanted = step if self._wanted is None else max(step, self._wanted)
            self._changed.notify_all()

    def finish(self, *, hurry: bool = False) -> None:
        """Waits until the newest checkpoint is copied or cannot be, with the files of the run as they are now; says so.

        It waits as long as a file is copied every `PATIENCE` seconds, or with `hurry` for `HURRIED` seconds in all.
        Later calls do nothing.
        """
        with self._changed:
            again, self._closing = self._closing, True
            self._changed.notify_all()
        if self._mirror is None or again:
            return
        began = self._moved_at = time.monotonic()
        told = False
        while self._thread.is_alive():
            now = time.monotonic()
            if now - began > HURRIED if hurry else now - self._moved_at > PATIENCE:
                break
            if not told and now - began > TOLD:
                told = True
                self._say(f"copying checkpoint {self._wanted} to {self._mirror.url}: Ctrl-C leaves at once")
            self._thread.join(0.05)
        if self._finished:
            self._say(f"mirror: checkpoint {self._done} is at {self._mirror.url}")
        elif self._wanted is not None:
            newest = "no checkpoint of this session" if self._done is None else f"checkpoint {self._done}"
            why = self._trouble or "the time was not enough"
            what = f"checkpoint {self._wanted}" if self._done != self._wanted else "the last metrics"
            self._say(
                f"warning: {what} could not be copied to {self._mirror.url} ({why}), which has {newest}. "
                "The same command tries again"
            )

    def _moved(self) -> None:
        self._moved_at = time.monotonic()

    def _work(self) -> None:
        failures = 0
        while (step := self._next(failures)) is not None:
            closing = self._closing
            try:
                copied = self._copy(step)
            except Exception as error:
                failures, self._trouble, self._tries = failures + 1, reason(error), self._tries - closing
                if failures == 1:
                    trouble = f"the mirror cannot be used ({self._trouble})"
                    self._say(f"warning: {trouble}: training goes on, and it is tried again")
                continue
            if copied:
                if failures:
                    self._say(f"the mirror can be used again: it has checkpoint {step}")
                failures, self._trouble = 0, None
                self._finished = closing and step == self._wanted

    def _next(self, failures: int) -> int | None:
        """Waits until there is something to copy, or to try again; returns its step, or None at the end."""
        with self._changed:
            if failures:
                pause = min(self._pause * 2 ** min(failures - 1, 9), LONGEST_PAUSE)
                self._changed.wait(min(pause, self._pause) if self._closing else pause)
            while not self._closing and not failures and self._wanted in (None, self._done):
                self._changed.wait()
            over = self._closing and (self._finished or self._tries == 0)
            return None if over else self._wanted

    def _copy(self, step: int) -> bool:
        """Copies a checkpoint, or returns False if it was deleted meanwhile because there are newer ones."""
        assert self._mirror is not None
        archive = pack(self._run_dir, step)
        if step == self._done:  # at the end of the run, its files alone have changed
            self._mirror.refresh(step, archive)
            return True
        folder, staging = self._run_dir / FOLDER / str(step), self._run_dir / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            # Checkpoints that are not among the newest any more are deleted while they are copied.
            link_tree(folder, staging)
            if (damage := damage_of(epath.Path(staging), step)) is not None:
                raise OSError(f"checkpoint {step}: {damage}")
            self._mirror.put(step, staging, archive)
            self._done = step
            self._mirror.prune(step, self._keep)
            return True
        except OSError:
            if self._wanted == step or folder.exists():
                raise
            return False
        finally:
            shutil.rmtree(staging, ignore_errors=True)
