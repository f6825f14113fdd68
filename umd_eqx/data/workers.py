"""Processes that compute the items of a stream, in place of threads.

Process k of n computes the items k, k + n, k + 2n, ... and sends each through a pipe. A large item is sent when it is
read, so that each process is at most one item ahead. Grain's `mp_prefetch` is not used: in trials it hung twice for an
unknown reason, and it does not return what a process finds out about broken images.
"""

import itertools
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import TypeVar

import jax

from umd_eqx.core.errors import BadInput

T = TypeVar("T")


def by_processes(prepare: Callable[[], Callable[[int], T]], first: int, count: int) -> Generator[T, None, None]:
    """Yields the items first, first + 1, ... of an infinite stream, computed by processes of their own.

    The processes never use an accelerator: in them, JAX sees the CPU only. They ignore SIGINT and SIGTERM, which are
    for the process that trains, and end when this generator is closed, or when the process that reads it ends.

    **Arguments:**

    - `prepare`: called once in each process; returns the function that computes an item. Must be picklable.
    - `first`: the number of the first item.
    - `count`: the number of processes, 1 or more.

    **Raises:** `BadInput` naming `data.worker_kind` if `prepare` cannot be pickled, and naming `data.workers` if a
    process ends; any exception that is raised in a process.
    """
    try:
        work = pickle.dumps(prepare)
    except Exception as error:  # what pickle raises depends on the objects
        problem = f"the images cannot be sent to another process ({' '.join(str(error).split())[:200]})"
        raise BadInput("data.worker_kind", problem, "Use threads") from error
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    processes, pipes = [], []
    try:
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(theirs, work, first + number, count), daemon=True)
            process.start()
            theirs.close()  # otherwise the end of the process would not be noticed
            processes.append(process)
            pipes.append(ours)
        for number in itertools.cycle(range(count)):
            try:
                item, error = pipes[number].recv()
            except (EOFError, ConnectionResetError) as ended:
                processes[number].join(timeout=10)
                problem = f"a process that prepares batches has ended (exit code {processes[number].exitcode})"
                raise BadInput("data.workers", problem, "Use fewer if memory ran out, or use threads") from ended
            if error is not None:
                raise error
            yield item
    finally:
        for process, pipe in zip(processes, pipes, strict=False):
            process.kill()
            process.join()
            pipe.close()


def _serve(pipe: Connection, work: bytes, first: int, stride: int) -> None:
    """Sends the items first, first + stride, ... as (item, None), until one raises: it is sent as (None, exception)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")  # JAX has been imported with this module, and read its variables
    try:
        compute = pickle.loads(work)()
        for number in itertools.count(first, stride):
            pipe.send((compute(number), None))
    except (BrokenPipeError, ConnectionResetError):
        pass  # nobody reads any more
    except Exception as error:
        pipe.send((None, _portable(error)))


def _portable(error: Exception) -> Exception:
    """Returns an exception that can be sent to another process: the same if possible."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
