"""Runs of several processes on this machine, and how they end."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from faults.tiny import COMMAND, cache_dir, ended, numbers, rows

DEVICES = 8


def started(
    run_dir: Path,
    *flags: str,
    count: int,
    last: tuple[str, ...] = (),
    seconds_a_step: float = 0.0,
    which: int = 0,
    variables: Mapping[str, str] | None = None,
) -> list[subprocess.Popen[str]]:
    """The command as `count` processes with `DEVICES` devices together.

    `last` are more flags of the last process, and `variables` more variables of the process `which`, for
    `tiny_pretrain.py`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "UMD_"))}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
        "JAX_COMPILATION_CACHE_DIR": cache_dir(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "SECONDS_A_STEP": str(seconds_a_step),
        "LOST_SECONDS": "12",
    }
    words = [sys.executable, str(COMMAND), "tiny", "--model.variant", "mu/14", "--run-dir", str(run_dir), *flags]
    together = ["--sharding.coordinator", address, "--sharding.num-processes", str(count)]
    commands = [
        [*words, *(together if count > 1 else []), *(["--sharding.process-id", str(i)] if count > 1 else [])]
        for i in range(count)
    ]
    commands[-1] += last
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": run_dir.parent}
    extra = [{**(variables or {}), "HOLD": str(run_dir)} if i == which else {} for i in range(count)]
    pairs = zip(commands, extra, strict=True)
    return [subprocess.Popen(command, env=environment | mine, **pipes) for command, mine in pairs]


def all_ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each, without what the library of the collectives prints when it connects."""
    try:
        found = [ended(process, 500.0) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, _without_gloo(out), _without_gloo(error)) for code, out, error in found]


def _without_gloo(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if "[Gloo]" not in line and "peer ranks" not in line)


def files(run_dir: Path) -> list[str]:
    """The files of a run, but the arrays of checkpoints, whose names are drawn."""
    found = (str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    return sorted(name for name in found if "/state/" not in name)


def trained(run_dir: Path, steps: int, count: int) -> None:
    """Trains up to a step; all processes but the first are silent."""
    first, *others = all_ended(started(run_dir, "--limit-steps", str(steps), count=count))
    assert first[0] == 0, "\n".join(map(str, first))
    assert [other[:2] for other in others] == [(0, "")] * len(others), others


def reached(run_dir: Path, processes: list[subprocess.Popen[str]], step: int) -> None:
    """Returns when the row of a step is written."""
    end = time.monotonic() + 400
    while len(rows(run_dir)) < step and time.monotonic() < end and processes[0].poll() is None:
        time.sleep(0.1)


def resumed(run_dir: Path, whole: Path) -> None:
    """Asserts that two processes go on with the run, whose rows are then those of `whole`, which nothing disturbed."""
    trained(run_dir, 8, count=2)
    if not whole.exists():
        trained(whole, 8, count=2)
    assert numbers(run_dir) == numbers(whole)
