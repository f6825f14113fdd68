"""SIGKILL at random moments of runs of every method: imports, compilation, steps, evaluations, saves, restores."""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faults.suite.base import Fault, Outcome, Trial
from faults.suite.in_process import command
from faults.suite.runs import begin, differences, reference
from faults.tiny import PATIENCE, ended, rows
from faults.tiny_methods import STEPS

METHODS = ("umd", "mae", "dit", "maskdit")
SECONDS_A_STEP = 0.1


def moment(method: str, number: int) -> tuple[int, float]:
    """Returns a random moment: a number of rows that are written by then, and the seconds after that.

    A quarter of the moments are before the first row: a few seconds after the start of the process.
    """
    rng = np.random.default_rng([METHODS.index(method), number])
    if number % 4 == 0:
        return 0, float(rng.uniform(0.0, 10.0))
    return int(rng.integers(1, STEPS - 2)), float(rng.uniform(0.0, 0.3))


def killed(run_dir: Path, method: str, after: int, seconds: float) -> bool:
    """Starts a run and kills it at a moment. Returns False if the run was over before."""
    process = begin(run_dir, method, seconds_a_step=SECONDS_A_STEP)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and len(rows(run_dir)) < after and time.monotonic() < end:
        time.sleep(0.005)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return ended(process)[0] == -signal.SIGKILL


def trial(method: str, number: int, folder: Path) -> Outcome:
    whole = reference(folder.parents[1], method)
    after, seconds = moment(method, number)
    run_dir = folder / "run"
    for repetition in range(4):
        # On a machine that is fast or busy at the wrong time, the run may be over: then one is killed earlier.
        run_dir = folder / f"run{repetition}"
        if killed(run_dir, method, after, seconds / 2**repetition):
            break
    else:
        return Outcome(False, "the run was over before it was killed")
    at = len(rows(run_dir))
    # A fifth of the runs are finished as by a user, in a process of its own. The others save the imports.
    code, _, error = ended(begin(run_dir, method)) if number % 5 == 0 else command(run_dir, method)
    if (code, error) != (0, ""):
        return Outcome(False, f"killed at row {at}; the same command ended with {code}: {error.strip()[-200:]}")
    wrong = differences(run_dir, method, whole)
    return Outcome(not wrong, f"killed at row {at}: {wrong or 'identical'}", {"rows": at})


def trials(quick: bool) -> Sequence[Trial]:
    named = [(method, number) for number in range(10) for method in METHODS]
    if quick:
        named = [("mae", 5)]
    return [
        Trial(f"{method}-{number}", lambda folder, m=method, n=number: trial(m, n, folder)) for method, number in named
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    return f"identical {sum(outcome.passed for outcome in outcomes)}/{len(outcomes)}"


FAULT = Fault("kill", "SIGKILL at random moments, ten for each method", trials, summary)
