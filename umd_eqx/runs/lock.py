"""The lock of a directory: one process at a time writes into it, also where several hosts share it.

The lock is a file `.lock` that is locked with `flock`, and holds a `Record` of the process. `flock` is released when a
process ends, however it ends, but a network file system may know it on each host alone, or not at all. The record is
therefore renewed every few seconds, and a process that finds the record of another host watches whether it changes.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from umd_eqx.core.errors import BadInput, require_short

LOCK = ".lock"
"""The lock file of a directory."""

BEAT_SECONDS = 5.0
"""Seconds between two renewals of a record."""

WATCH_SECONDS = 4 * BEAT_SECONDS
"""Seconds for which the record of another host is watched before its process is taken to have ended."""

LONGEST_INSIDE = 512
"""The length in bytes that paths in a run directory may have: those of checkpoints are the longest."""

_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_MOST_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Record:
    """What a lock file says about the process that holds the lock.

    - `host`, `pid`: the process.
    - `boot`: the boot of its kernel, and its namespace of process numbers; empty where they are not known.
    - `token`: distinguishes this holder from all others.
    - `beat`: how often the record was renewed.
    """

    host: str
    pid: int
    boot: str
    token: str
    beat: int = 0

    @classmethod
    def of_this_process(cls) -> "Record":
        """Returns the record of this process, with a new token."""
        return cls(platform.node(), os.getpid(), _boot(), uuid.uuid4().hex)

    def line(self) -> bytes:
        """Returns the content of the lock file. Its length does not depend on `beat`."""
        fields = dataclasses.asdict(self) | {"beat": f"{self.beat:012d}"}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """Reads a lock file; returns None if it holds no record. Raises `OSError` if it is missing or unreadable."""
        with path.open("rb") as file:  # opened each time: a network file system looks at the server only then
            content = file.read(_MOST_BYTES)
        try:
            found = json.loads(content)
            host, boot, token = (str(found[name]) for name in ("host", "boot", "token"))
            return cls(host, int(found["pid"]), boot, token, int(found["beat"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


class RunLock:
    """A lock that is held by this process; see `locked`."""

    def __init__(self, directory: Path, field: str, descriptor: int, record: Record):
        self._directory, self._field, self._descriptor, self._record = directory, field, descriptor, record
        self._path, self._over = directory / LOCK, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._write(record)
        self._thread.start()

    def require_held(self) -> None:
        """Raises `BadInput` if the directory was deleted, renamed or replaced, or another process took it over."""
        try:
            there = os.path.samestat(os.fstat(self._descriptor), self._path.stat())
            found = Record.read(self._path) if there else None
        except (FileNotFoundError, NotADirectoryError):
            there, found = False, None
        if not there:
            problem = f"{self._directory} was deleted, renamed or replaced while this process was writing into it"
            raise BadInput(self._field, problem, "Put it back and run the same command again, or choose another")
        if found is None or found.token != self._record.token:
            who = "" if found is None else f" (process {found.pid} on {found.host})"
            problem = f"another process{who} has taken over {self._directory}"
            raise BadInput(self._field, problem, "Let that one run, or choose another directory")

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """A context in which any error is reported by `require_held` if the lock is lost, and passes otherwise."""
        try:
            yield
        except BadInput:
            raise
        except Exception:
            self.require_held()
            raise

    def release(self) -> None:
        """Removes the record from the lock file, and releases the lock."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours():
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _is_ours(self) -> bool:
        found = Record.read(self._path)
        return found is not None and found.token == self._record.token

    def _write(self, record: Record) -> None:
        line = record.line()
        os.pwrite(self._descriptor, line, 0)
        os.ftruncate(self._descriptor, len(line))
        os.fsync(self._descriptor)

    def _beat(self) -> None:
        beat = 0
        while not self._over.wait(BEAT_SECONDS):
            beat += 1
            # A full disk, or a file system that is away for a while, is reported where the run writes its results.
            with contextlib.suppress(OSError):
                if not self._is_ours():
                    return  # `require_held` says so
                self._write(dataclasses.replace(self._record, beat=beat))


@contextlib.contextmanager
def locked(directory: Path, field: str = "run_dir") -> Iterator[RunLock]:
    """A context that locks a directory for this process, creating it if necessary.

    The lock is free again when the process ends, however it ends. If the process was killed on another host, the next
    one waits `WATCH_SECONDS` to see that its record is no longer renewed.

    **Arguments:**

    - `directory`: a directory on this machine or on a network file system.
    - `field`: the field that named it.

    **Raises:** `BadInput` if another process holds the lock, or if the directory cannot be written to.
    """
    require_short(field, directory, LONGEST_INSIDE)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BadInput(field, f"{directory} cannot be written to ({error.strerror})", "Choose another") from error
    try:
        mine = Record.of_this_process()
        alone = _flock(descriptor, directory, field)
        found = Record.read(directory / LOCK)
        if found is not None and (found.boot != mine.boot or not alone) and _is_renewed(directory, found):
            raise _taken(directory, field, found)
        held = RunLock(directory, field, descriptor, mine)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise BadInput(field, f"{directory} cannot be locked ({error.strerror})", "Choose another") from error
        raise
    try:
        with held.explaining():
            yield held
    finally:
        held.release()


def _flock(descriptor: int, directory: Path, field: str) -> bool:
    """Locks the file. Returns False if the file system has no locks; raises `BadInput` if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return False
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise _taken(directory, field, Record.read(directory / LOCK)) from error
    return True


def _is_renewed(directory: Path, found: Record) -> bool:
    """Whether the process of a record is running: whether the record changes within `WATCH_SECONDS`."""
    if found.boot == _boot() != "":
        # The same machine, and a file system without locks.
        return _runs(found.pid)
    what = f"waiting {WATCH_SECONDS:.0f} s to see whether process {found.pid} on {found.host} still uses {directory}"
    print(what, file=sys.stderr, flush=True)
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 10)
        if Record.read(directory / LOCK) not in (found, None):
            return True
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def _taken(directory: Path, field: str, found: Record | None) -> BadInput:
    who = "" if found is None else f" (process {found.pid} on {found.host})"
    hint = "Wait for it, stop it, or choose another directory"
    return BadInput(field, f"another process is running in {directory}{who}", hint)


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
