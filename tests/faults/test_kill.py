"""Runs in processes of their own that end in every way a process can."""

import os
import platform
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from faults.tiny import (
    STEPS,
    arrays,
    assert_equal_bit_for_bit,
    ended,
    let_go,
    numbers,
    read_until,
    rows,
    start,
    tiny,
    wait_until_held,
)
from faults.tiny import (
    compilation_cache as compilation_cache,
)

from umd_eqx.recipes.config import Config
from umd_eqx.runs.lock import locked
from umd_eqx.training.optimisers import Muon


def same_as(run_dir: Path, whole: Path, config: Config | None = None) -> None:
    config = config or tiny()
    assert [row["step"] for row in rows(run_dir)] == list(range(1, STEPS + 1))
    assert numbers(run_dir) == numbers(whole)
    assert_equal_bit_for_bit(arrays(run_dir, config), arrays(whole, config))


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL


def test_a_run_killed_and_stopped_again_and_again_is_the_run_that_never_was(tmp_path):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    uninterrupted = start(whole)  # beside the other, to take half the time
    for step in (3, 6):
        process = start(run_dir, hold_after=step)
        wait_until_held(process, run_dir)
        kill(process)
    for step, number in ((8, signal.SIGTERM), (10, signal.SIGINT)):
        process = start(run_dir, hold_after=step)
        wait_until_held(process, run_dir)
        process.send_signal(number)
        read_until(process, f"{number.name}: saving")
        let_go(run_dir)
        code, out, error = ended(process)
        assert code == 75
        assert error == ""
        last = rows(run_dir)[-1]["step"]
        assert last == step + 1  # the step that it came in is finished, and no other begun
        assert f"stopped by {number.name} at step {last} of 12, saved. The same command resumes it" in out
        assert (run_dir / "checkpoints" / str(last)).is_dir()

    code, out, _ = ended(start(run_dir))
    assert code == 0
    assert f"resuming {run_dir} at step {last} of 12" in out
    code, out, error = ended(uninterrupted)
    assert (code, error) == (0, "")
    assert "denoising/eps/t0.50" in out
    same_as(run_dir, whole)


def test_a_killed_run_of_another_optimiser_is_the_run_that_never_was(tmp_path):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    flags = ("--optim", "muon", "--optim.momentum", "0.9")
    uninterrupted = start(whole, *flags)
    process = start(run_dir, *flags, hold_after=5)
    wait_until_held(process, run_dir)
    kill(process)
    # Without the words that chose it, it is another run.
    code, _, error = ended(start(run_dir))
    assert (code, error[:16]) == (2, "error: --optim: ")
    code, out, _ = ended(start(run_dir, *flags))
    assert code == 0
    assert f"resuming {run_dir} at step " in out  # 4, or 2 where the kill came before that was all written
    assert ended(uninterrupted)[0] == 0
    optim = tiny().optim
    muon = Muon(optim.lr, optim.lr_batch_size, steps=STEPS, warmup=optim.warmup, momentum=0.9)
    same_as(run_dir, whole, tiny(optim=muon))


def test_a_second_ctrl_c_is_one_line_and_leaves_the_last_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, hold_after=3)
    wait_until_held(process, run_dir)
    process.send_signal(signal.SIGINT)
    read_until(process, "SIGINT: saving")  # two at the same moment would be one to a process
    process.send_signal(signal.SIGINT)
    code, _, error = ended(process)
    assert code == 130
    assert error == "interrupted: the last checkpoint, if any, is unchanged\n"
    assert (run_dir / "checkpoints/2/crc32.json").is_file()


def test_what_is_wrong_is_one_line_and_no_traceback_in_a_real_process(tmp_path):
    code, out, error = ended(start(tmp_path / "run", "--optim.lr", "-1"))
    assert (code, out) == (2, "")
    assert error == "error: --optim.lr: -1.0 is not positive. Use a positive number\n"
    assert not (tmp_path / "run").exists()


def test_a_run_that_another_process_is_at_is_refused_with_one_line(tmp_path):
    run_dir = tmp_path / "run"
    with locked(run_dir):
        code, _, error = ended(start(run_dir))
    assert code == 2
    assert error.splitlines() == [
        f"error: --run-dir: another process is running in {run_dir} (process {os.getpid()} on {platform.node()}). "
        "Wait for it, stop it, or choose another directory"
    ]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_the_run_that_never_was(tmp_path):
    # While importing, compiling, in a step, an evaluation, a save, a restore. Compiled as for a user.
    whole, run_dir, rng = tmp_path / "whole", tmp_path / "run", np.random.default_rng(0)
    assert ended(start(whole, optimise=True))[0] == 0
    for _ in range(12):
        process = start(run_dir, seconds_a_step=0.05, optimise=True)
        try:
            assert ended(process, rng.uniform(2.0, 12.0))[0] == 0
            break
        except subprocess.TimeoutExpired:
            kill(process)
    assert ended(start(run_dir, optimise=True))[0] == 0
    same_as(run_dir, whole)
