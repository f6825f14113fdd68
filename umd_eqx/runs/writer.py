"""One writer for a run of several processes: the first one. What the others would write goes to a temporary folder.

Every process runs the same program to the last line, pictures and report included, so that no computation depends on
which process it is in; only the first one's files are kept. Checkpoints alone are written by all together.
"""

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from umd_eqx.core.errors import BadInput
from umd_eqx.core.processes import from_first, is_first
from umd_eqx.runs.lock import LOCK, RunLock, locked

MARK = ".processes.tmp"
PATIENCE = 10.0
"""Seconds in which a file must be visible on all hosts."""


class Writing(NamedTuple):
    """Where a process writes.

    - `shared`: the run directory, with the checkpoints.
    - `directory`: the folder for everything else: that one in the first process, a temporary one in the others.
    - `lock`: the lock of the run directory in the first process, None in the others.
    """

    shared: Path
    directory: Path
    lock: RunLock | None

    def require_held(self) -> None:
        """Raises `BadInput` in the first process if it does not hold the run directory any more."""
        if self.lock is not None:
            self.lock.require_held()

    def release(self) -> None:
        """Releases the lock, for a process that ends at once."""
        if self.lock is not None:
            self.lock.release()


@contextlib.contextmanager
def one_writer(run_dir: Path, claim: Callable[[], Any]) -> Iterator[tuple[Writing, Any]]:
    """A context with the place that this process writes to, and what `claim` returned in the first process.

    The first process locks `run_dir`, calls `claim`, which returns a JSON value, and writes there. Each of the others
    has a temporary folder with copies of the files in `run_dir`. Raises the `BadInput` of the lock or of `claim` in
    every process, and one if `run_dir` is not shared by all of them.
    """
    with contextlib.ExitStack() as stack:
        held: list[RunLock] = []

        def begin() -> Any:
            held.append(stack.enter_context(locked(run_dir)))
            return claim()

        claimed, own = from_first(begin), run_dir
        if jax.process_count() > 1:
            _require_shared(run_dir)
            if not is_first():
                own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="umd_eqx_process_")))
                for entry in run_dir.iterdir():
                    if entry.is_file() and entry.name != LOCK:
                        shutil.copyfile(entry, own / entry.name)
            multihost_utils.sync_global_devices("the first process may write")
        yield Writing(run_dir, own, held[0] if held else None), claimed


def _require_shared(run_dir: Path) -> None:
    """Raises `BadInput` in every process unless all of them see the same folder."""
    mark = run_dir / MARK

    def write() -> str:
        token = uuid.uuid4().hex
        mark.write_text(token)
        return token

    token, end = from_first(write), time.monotonic() + PATIENCE
    while not (seen := _reads(mark, token)) and time.monotonic() < end:
        time.sleep(0.2)
    everywhere = bool(multihost_utils.process_allgather(np.asarray(seen)).all())
    if is_first():
        mark.unlink()
    if not everywhere:
        problem = f"{run_dir} is not the same folder for all processes"
        raise BadInput("run_dir", problem, "Use a folder on a file system that all hosts share")


def _reads(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False
