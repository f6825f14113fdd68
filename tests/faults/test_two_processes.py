"""Runs of two processes: the same run as one process with as many devices, one writer, one message, one exit code."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import COMMAND, cache_dir, ended, numbers, rows

DEVICES = 4
pytestmark = pytest.mark.slow


def started(run_dir: Path, *flags: str, count: int, last: tuple[str, ...] = (), seconds_a_step: float = 0.0):
    """The command as `count` processes with `DEVICES` devices together; `last` are more flags of the last of them."""
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
    }
    words = [sys.executable, str(COMMAND), "tiny", "--model.variant", "mu/14", "--run-dir", str(run_dir), *flags]
    together = ["--sharding.coordinator", address, "--sharding.num-processes", str(count)]
    commands = [
        [*words, *(together if count > 1 else []), *(["--sharding.process-id", str(i)] if count > 1 else [])]
        for i in range(count)
    ]
    commands[-1] += last
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": run_dir.parent}
    return [subprocess.Popen(command, env=environment, **pipes) for command in commands]


def all_ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each, without what the library of the collectives prints when it connects."""
    try:
        found = [ended(process, 500.0) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, _without_gloo(out), _without_gloo(error)) for code, out, error in found]


def _without_gloo(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if "[Gloo]" not in line)


def trained(run_dir: Path, steps: int, count: int) -> None:
    """Trains up to a step; all processes but the first are silent."""
    first, *others = all_ended(started(run_dir, "--limit-steps", str(steps), count=count))
    assert first[0] == 0, "\n".join(map(str, first))
    assert [other[:2] for other in others] == [(0, "")] * len(others), others


def test_two_processes_train_the_run_of_one_and_each_resumes_the_other(tmp_path):
    left, right = tmp_path / "left", tmp_path / "right"
    trained(left, 4, count=1)
    trained(right, 4, count=2)
    trained(left, 8, count=2)
    trained(right, 8, count=1)
    pairs = list(zip(numbers(left), numbers(right), strict=True))
    assert [row["step"] for row, _ in pairs] == list(range(1, 9))
    for one, other in pairs:
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    names = [sorted(path.name for path in side.rglob("*") if path.is_file()) for side in (left, right)]
    assert names[0] == names[1]
    assert all((left / "checkpoints" / str(step) / "crc32.json").exists() for step in (6, 8))

    again = tmp_path / "again"
    shutil.copytree(left, again)
    (first, said, _), other = all_ended(started(again, "--limit-steps", "8", count=2))
    assert first == other[0] == 0
    assert "is finished" in said
    assert numbers(again) == numbers(left)


def test_what_the_first_process_refuses_ends_both_with_one_message(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "thesis.txt").touch()
    (first, _, error), (other, out, silent) = all_ended(started(run_dir, count=2))
    assert (first, other) == (2, 2)
    assert "holds 'thesis.txt'" in error
    assert error.count("\n") == 1
    assert (out, silent) == ("", "")
    assert [path.name for path in run_dir.iterdir() if path.name != ".lock"] == ["thesis.txt"]


def test_what_another_process_refuses_ends_both_and_the_first_says_it(tmp_path):
    (first, _, error), (other, *silent) = all_ended(
        started(tmp_path / "run", count=2, last=("--data.dir", str(tmp_path / "nowhere")))
    )
    assert (first, other) == (2, 2)
    assert "nowhere" in error
    assert error.count("\n") == 1
    assert silent == ["", ""]


def test_a_signal_to_one_process_saves_and_stops_both(tmp_path):
    run_dir = tmp_path / "run"
    processes = started(run_dir, count=2, seconds_a_step=0.3)
    end = time.monotonic() + 400
    while len(rows(run_dir)) < 2 and time.monotonic() < end and processes[0].poll() is None:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    (first, out, _), (other, *_) = all_ended(processes)
    assert (first, other) == (75, 75), out
    stopped = rows(run_dir)[-1]["step"]
    assert stopped < 12
    assert (run_dir / "checkpoints" / str(stopped) / "crc32.json").exists()
