"""Writing of many files by several processes."""

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from umd_eqx.core.errors import BadInput
from umd_eqx.data.preparing.originals import Originals
from umd_eqx.data.preparing.shards import Facts, Settings, Shard, Stopped, ensure_shard

_REPORT = 16
"""A process reports its progress after so many images."""

_GRACE = 2.0
"""Seconds that processes have to end by themselves."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The files to write, with everything that this needs; `known` are the facts about the files that are there."""

    settings: Settings
    originals: Originals
    folder: Path
    shards: Sequence[Shard]
    known: Mapping[str, Facts]

    def ensure(self, shard: Shard, seen: Callable[[], None], stopped: Callable[[], bool]) -> Facts:
        """Writes one file: see `ensure_shard`."""
        known = self.known.get(shard.name)
        return ensure_shard(self.settings, self.originals, shard, self.folder, known, seen, stopped)


def write_all(
    work: Work, workers: int, seen: Callable[[int], None], stopped: Callable[[], bool]
) -> Generator[Facts, None, None]:
    """Writes files and yields the facts about each, in the order in which they are finished.

    **Arguments:** the number of processes; with one, this process writes. `seen` is called with a number of further
    images, `stopped` is asked whether to stop. Closing the iterator stops the processes.

    **Raises:** `Stopped`; `OSError` if a file cannot be written; `BadInput` naming `workers` if a process was killed.
    """
    if min(workers, len(work.shards)) > 1:
        yield from _in_processes(work, min(workers, len(work.shards)), seen, stopped)
        return
    for shard in work.shards:
        yield work.ensure(shard, lambda: seen(1), stopped)


def _in_processes(
    work: Work, workers: int, seen: Callable[[int], None], stopped: Callable[[], bool]
) -> Iterator[Facts]:
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would not survive
    taken, stop = context.Value("l", 0), context.Event()
    processes: dict[connection.Connection, Any] = {}
    try:
        for _ in range(workers):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(work, taken, stop, sending), daemon=True)
            process.start()
            sending.close()
            processes[receiving] = process
        yield from _received(processes, seen, stopped)
    finally:
        stop.set()
        end = time.monotonic() + _GRACE
        for channel, process in processes.items():
            channel.close()
            process.join(max(0.0, end - time.monotonic()))
            process.kill()  # what it was writing has another name than a complete file
            process.join()


def _received(
    processes: dict[connection.Connection, Any], seen: Callable[[int], None], stopped: Callable[[], bool]
) -> Iterator[Facts]:
    """Yields what the processes send, until all have finished."""
    left = set(processes)
    while left:
        if stopped():
            raise Stopped
        for channel in connection.wait(list(left), timeout=0.5):
            assert isinstance(channel, connection.Connection)
            try:
                message = channel.recv()
            except EOFError:
                process = processes[channel]
                process.join()
                problem = f"one of the processes was ended (exit code {process.exitcode})"
                raise BadInput("workers", problem, "Use fewer, which need less memory") from None
            if message is None:
                left.remove(channel)
            elif isinstance(message, int):
                seen(message)
            elif isinstance(message, Exception):
                raise message
            else:
                yield message


def _run(work: Work, taken: Any, stop: Any, channel: connection.Connection) -> None:
    """Writes files in a process until none is left. Ends when the process that started it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is told, and decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent, waiting = multiprocessing.parent_process(), 0

    def stopped() -> bool:
        return stop.is_set() or (parent is not None and not parent.is_alive())

    def seen() -> None:
        nonlocal waiting
        waiting += 1
        if waiting >= _REPORT:
            channel.send(waiting)
            waiting = 0

    try:
        while True:
            with taken.get_lock():
                number, taken.value = taken.value, taken.value + 1
            if number >= len(work.shards):
                break
            facts = work.ensure(work.shards[number], seen, stopped)
            channel.send(facts)
        channel.send(waiting)
        channel.send(None)
    except (Stopped, BrokenPipeError):
        os._exit(0)
    except OSError as error:
        channel.send(OSError(error.errno, error.strerror, str(error.filename or work.folder)))
