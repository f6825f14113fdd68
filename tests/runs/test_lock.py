"""One process at a time: the lock of a directory, on file systems that lock and on those that do not."""

import dataclasses
import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.runs import lock
from umd_eqx.runs.lock import LOCK, Record, RunLock, locked


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Beats of milliseconds."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.4)


@pytest.fixture
def no_flock(monkeypatch):
    """A file system that has no locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def elsewhere(**changed: object) -> Record:
    """The record of a process on another host."""
    return dataclasses.replace(Record.of_this_process(), host="far", boot="another", **changed)


def renewed(path: Path, record: Record, over: threading.Event) -> threading.Thread:
    """Another host that renews its record until `over`."""

    def beat() -> None:
        number = 0
        while not over.wait(0.02):
            number += 1
            with path.open("r+b") as file:
                file.write(dataclasses.replace(record, beat=number).line())

    thread = threading.Thread(target=beat)
    thread.start()
    return thread


def test_a_lock_says_who_holds_it_and_is_empty_afterwards(tmp_path):
    with locked(tmp_path) as held:
        found = Record.read(tmp_path / LOCK)
        assert found is not None
        assert (found.pid, found.host) == (os.getpid(), os.uname().nodename)
        assert found.boot
        held.require_held()
        with pytest.raises(BadInput, match=rf"another process is running in .* \(process {os.getpid()} on"):
            locked(tmp_path).__enter__()
        held.require_held()  # the attempt did no harm
    assert (tmp_path / LOCK).read_bytes() == b""
    with locked(tmp_path):
        pass


def test_a_record_is_renewed_while_the_lock_is_held(tmp_path):
    with locked(tmp_path):
        first = Record.read(tmp_path / LOCK)
        for _ in range(200):
            if Record.read(tmp_path / LOCK) != first:
                break
            threading.Event().wait(0.01)
        else:
            pytest.fail("the record never changed")


def test_where_flock_does_not_reach_a_host_that_renews_its_record_keeps_the_lock(tmp_path, capsys):
    # flock is granted, as on a network file system that locks on each host alone.
    over, theirs = threading.Event(), elsewhere(pid=77)
    (tmp_path / LOCK).write_bytes(theirs.line())
    thread = renewed(tmp_path / LOCK, theirs, over)
    try:
        with pytest.raises(BadInput, match=r"another process is running in .* \(process 77 on far\)") as error:
            locked(tmp_path, "out").__enter__()
    finally:
        over.set()
        thread.join()
    assert error.value.field == "out"
    assert "waiting 0 s to see whether process 77 on far still uses" in capsys.readouterr().err
    found = Record.read(tmp_path / LOCK)
    assert found is not None
    assert found.token == theirs.token


def test_the_record_of_a_host_that_was_killed_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_bytes(elsewhere().line())
    with locked(tmp_path) as held:
        held.require_held()


@pytest.mark.usefixtures("no_flock")
def test_without_any_locks_a_live_process_of_this_machine_keeps_it_and_a_dead_one_does_not(tmp_path):
    mine = Record.of_this_process()
    (tmp_path / LOCK).write_bytes(dataclasses.replace(mine, pid=os.getppid()).line())
    with pytest.raises(BadInput, match="another process is running in"):
        locked(tmp_path).__enter__()
    (tmp_path / LOCK).write_bytes(dataclasses.replace(mine, pid=2**22 + 1).line())  # above any process's number
    with locked(tmp_path) as held:
        held.require_held()


@pytest.mark.parametrize("content", [b"", b"garbage", b"[" * 5000, b'{"host": 1}', b'{"pid": "x"}', b"null"])
def test_whatever_else_the_file_holds_is_no_record(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with locked(tmp_path) as held:
        held.require_held()


def lose(how: str, directory: Path) -> None:
    if how == "deleted":
        (directory / LOCK).unlink()
        directory.rmdir()
    elif how == "renamed":
        directory.rename(directory.with_name("elsewhere"))
    elif how == "replaced":
        directory.rename(directory.with_name("elsewhere"))
        directory.mkdir()
        (directory / LOCK).touch()
    else:
        (directory / LOCK).write_bytes(elsewhere(pid=77).line())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        *((how, "was deleted, renamed or replaced while") for how in ("deleted", "renamed", "replaced")),
        ("taken", r"another process \(process 77 on far\) has taken over"),
    ],
)
def test_a_lock_that_is_lost_is_told_and_explains_other_errors(tmp_path, how, said):
    directory = tmp_path / "run"

    def write() -> None:
        with locked(directory):
            lose(how, directory)
            raise FileNotFoundError("whatever follows from it")

    with pytest.raises(BadInput, match=said):
        write()
    if how == "taken":  # the other one's record is left alone
        found = Record.read(directory / LOCK)
        assert found is not None
        assert found.host == "far"


def test_other_errors_pass_while_the_lock_is_held(tmp_path):
    with pytest.raises(FileNotFoundError, match="own"), locked(tmp_path):
        raise FileNotFoundError("its own")


def test_a_holder_that_lost_its_lock_does_not_write_over_the_next_ones_record(tmp_path):
    with locked(tmp_path) as held:
        assert isinstance(held, RunLock)
        theirs = elsewhere()
        (tmp_path / LOCK).write_bytes(theirs.line())
        threading.Event().wait(0.2)
        found = Record.read(tmp_path / LOCK)
        assert found is not None
        assert found.token == theirs.token
