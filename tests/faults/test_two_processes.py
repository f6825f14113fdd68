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
from faults.tiny import COMMAND, cache_dir, ended, numbers, rows

DEVICES = 8
pytestmark = pytest.mark.slow


def started(
    run_dir: Path, *flags: str, count: int, last: tuple[str, ...] = (), seconds_a_step: float = 0.0, hang_in_last=""
):
    """The command as `count` processes with `DEVICES` devices together; `last` are more flags of the last of them.

    The last process stays for ever in the step after `hang_in_last`, if given.
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
    hold = [{}] * (count - 1) + [{"HOLD_AFTER": str(hang_in_last), "HOLD": str(run_dir)}]
    pairs = zip(commands, hold, strict=True)
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
    assert files(left) == files(right)
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


def reached(run_dir: Path, processes: list[subprocess.Popen[str]], step: int) -> None:
    """Returns when the row of a step is written."""
    end = time.monotonic() + 400
    while len(rows(run_dir)) < step and time.monotonic() < end and processes[0].poll() is None:
        time.sleep(0.1)


def resumed(run_dir: Path) -> None:
    """Asserts that one process goes on with the run, and that its rows are those of a run that nothing disturbed."""
    trained(run_dir, 8, count=2)
    whole = run_dir.parent / "whole"
    trained(whole, 8, count=2)
    assert numbers(run_dir) == numbers(whole)


def test_a_signal_to_one_process_saves_and_stops_both(tmp_path):
    run_dir = tmp_path / "run"
    processes = started(run_dir, count=2, seconds_a_step=0.3)
    reached(run_dir, processes, 2)
    processes[1].send_signal(signal.SIGTERM)
    (first, out, _), (other, *_) = all_ended(processes)
    assert (first, other) == (75, 75), out
    written = rows(run_dir)[-1]["step"]
    saved = max(int(path.parent.name) for path in run_dir.glob("checkpoints/*/crc32.json"))
    assert 2 <= written <= saved < 8
    # The row of a step that was to be evaluated is written after the evaluation, when the run goes on.
    assert saved == written or (saved == written + 1 and (run_dir / "pending.json").exists())
    resumed(run_dir)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_ends_the_other(which, number, tmp_path):
    run_dir = tmp_path / "run"
    processes = started(run_dir, count=2, seconds_a_step=0.3)
    reached(run_dir, processes, 3)
    processes[which].send_signal(number)
    began = time.monotonic()
    code, _, error = ended(processes[1 - which], 100.0)
    assert time.monotonic() - began < 60.0
    if (which, number) == (0, signal.SIGKILL):
        # With process 0 the service ends, on which JAX aborts the others.
        assert code in (75, -signal.SIGABRT), error
    else:
        assert code == 75, error
        assert f"process {which} gives no sign of life" in error
    processes[which].kill()
    processes[which].communicate()
    resumed(run_dir)


def test_a_process_that_hangs_ends_all_and_shows_where(tmp_path):
    run_dir = tmp_path / "run"
    processes = started(run_dir, "--sharding.hang-seconds", "8", count=2, hang_in_last=3)
    (first, _, error), (other, _, stacks) = all_ended(processes)
    assert (first, other) == (75, 75), error
    assert "process 1 (step 3) did not go on for 8 s" in error
    assert "in wait" in stacks
    resumed(run_dir)
