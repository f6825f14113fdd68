"""Runs of two processes: the same run as one process with as many devices, one writer, one message, one exit code."""

import shutil
import signal

import pytest
from faults.tiny import numbers, rows
from faults.together import all_ended, files, reached, resumed, started, trained

pytestmark = pytest.mark.slow


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
    resumed(run_dir, tmp_path / "whole")
