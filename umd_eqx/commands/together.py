"""Commands in one of several processes: the flags by which they meet, one voice, and one exit code."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

import jax

from umd_eqx.core.errors import BadInput
from umd_eqx.core.peers import Peers, leave_together
from umd_eqx.core.processes import ProcessesConfig, join, launcher, service


def processes_of(words: Sequence[str]) -> ProcessesConfig:
    """Returns the flags `--sharding.coordinator`, `num-processes`, `process-id` and `hang-seconds`.

    They are needed before JAX computes anything, and so before the other flags are parsed. Raises `BadInput` for a
    value that is not a number.
    """
    coordinator = _value(words, "coordinator")
    numbers = (_number(words, "num_processes"), _number(words, "process_id"))
    hang = _value(words, "hang_seconds")
    try:
        patience = {} if hang is None else {"hang_seconds": float(hang)}
    except ValueError as error:
        raise BadInput("sharding.hang_seconds", f"{hang!r} is not a number", "Use a number of seconds") from error
    return ProcessesConfig(coordinator, *numbers, **patience)


def met(words: Sequence[str], *, several: bool) -> Peers | None:
    """Joins the processes of a command; returns the others, or None for a process on its own.

    `several` is whether the command can run as several processes. Raises `BadInput` if it cannot and was started so;
    where a launcher has numbered the processes, all but the first exit without a word.
    """
    if several:
        config = processes_of(words)
        join(config)
        return Peers(config.hang_seconds) if service() is not None else None
    started = launcher()
    if started is None:
        return None
    if started.process_id:
        sys.exit(2)
    problem = f"{started.name} has started several processes, but this command runs as one"
    raise BadInput("sharding.num_processes", problem, "Start one process, which uses all devices of its machine")


def run_together(
    command: Callable[[list[str]], int], words: list[str], peers: Peers, line: Callable[[BadInput], str]
) -> int:
    """Runs a command in one of several processes, and returns its exit code. Only the first process prints.

    If the command fails in one of them, all end with its exit code and one message; `line` formats bad input.
    """
    if peers.process_id:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        return command(words)
    except BadInput as error:
        message, code = line(error), 2
    except KeyboardInterrupt:
        message, code = "interrupted: the last checkpoint, if any, is unchanged", 130
    except SystemExit as end:
        if not end.code:
            raise
        message, code = ("", end.code) if isinstance(end.code, int) else (str(end.code), 1)
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            peers.wait_for_loss()  # the collectives fail where another process is gone
        traceback.print_exc(file=sys.__stderr__)
        message, code = f"error: process {peers.process_id} failed, and the others end with it", 1
    leave_together(message, code)
    return code


def _value(words: Sequence[str], name: str) -> str | None:
    found = None
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") == f"__sharding.{name}":
            found = value if equals else next(iter(words[i + 1 : i + 2]), None)
    return found


def _number(words: Sequence[str], name: str) -> int | None:
    text = _value(words, name)
    if text in (None, "None"):
        return None
    if not text.isdecimal() or len(text) > 9:
        raise BadInput(f"sharding.{name}", f"{text!r} is not a number of processes", "Use a whole number")
    return int(text)
