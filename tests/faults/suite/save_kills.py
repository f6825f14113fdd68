"""SIGKILL while a checkpoint is written: the last one that was complete by then is restored, bit for bit."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faults.suite.base import Fault, Outcome, Trial
from faults.suite.runs import begin, reference, restore
from faults.tiny import ended

from umd_eqx.training.checkpoint import FOLDER, SEAL

LONGEST_SAVE = 0.15
"""Seconds. The kill comes at a random moment of this time from the beginning of a save, or earlier if it was over."""


def saving(folder: Path) -> list[str]:
    """Returns what there is of saves that are not over: folders of orbax, and steps without a seal."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.exists() else []
    return [name for name in names if not name.isdecimal() or not (folder / name / SEAL).exists()]


def committed(folder: Path) -> int:
    """Returns the newest step that is complete, sealed or not."""
    return max((int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()), default=0)


def killed_in_a_save(process: subprocess.Popen[str], folder: Path, skipped: int, seconds: float) -> bool:
    """Kills a process within a save, some seconds after it began, once there were `skipped` complete ones.

    The process is stopped while its folder is looked at. If the save was over by then, it goes on, and a later save is
    tried at an earlier moment. Returns False if the process ended before.
    """
    while process.poll() is None:
        if not saving(folder) or committed(folder) < skipped:
            time.sleep(0.0005)
            continue
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGSTOP)
        if saving(folder):
            process.kill()
            return True
        seconds /= 2
        os.kill(process.pid, signal.SIGCONT)
    return False


def trial(number: int, folder: Path) -> Outcome:
    whole, run_dir = reference(folder.parents[1], "umd"), folder / "run"
    rng = np.random.default_rng([1, number])
    skipped, seconds = int(rng.integers(1, 12)), float(rng.uniform(0.0, LONGEST_SAVE))
    process = begin(run_dir, "umd", "--checkpoint.every", "1")
    hit = killed_in_a_save(process, run_dir / FOLDER, skipped, seconds)
    code, _, error = ended(process)
    if not hit:
        return Outcome(False, f"no save was hit; the run ended with {code}: {error.strip()[-200:]}")
    last, left = committed(run_dir / FOLDER), ", ".join(saving(run_dir / FOLDER))
    found = restore(run_dir, "umd")
    same = found.step == last and found.digests == whole.digests[last]
    return Outcome(same, f"killed with {left}; step {found.step} of {last} restored{'' if same else ', not as it was'}")


def trials(quick: bool) -> Sequence[Trial]:
    return [Trial(f"save-{number}", lambda folder, n=number: trial(n, folder)) for number in range(1 if quick else 20)]


def summary(outcomes: Sequence[Outcome]) -> str:
    return f"last committed loads {sum(outcome.passed for outcome in outcomes)}/{len(outcomes)}"


FAULT = Fault("save", "SIGKILL during a save", trials, summary)
