"""A run on a small disk: `small_disk.py full|read-only-new|read-only-begun STEP ROOM DISK BEGUN SHARED`.

It prints its outcome as JSON. The disk is a tmpfs in a mount namespace of this process: it can be filled up and made
read-only without a trace.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from faults.suite.base import Outcome
from faults.suite.disks import TELLTALE, at_step, kept_and_resumed, told
from faults.suite.in_process import command, on_one_cached_device

from umd_eqx.training import loop
from umd_eqx.training.checkpoint import Checkpoints
from umd_eqx.training.step import TrainState


def fill(disk: Path, room: int) -> None:
    """Fills a disk up to some bytes."""
    with (disk / "ballast").open("wb") as file:
        free = shutil.disk_usage(disk).free
        os.posix_fallocate(file.fileno(), 0, max(free - room, 1))


def full(step: int, room: int, disk: Path, begun: Path, shared: Path) -> Outcome:
    """Fills the disk of a run before a step, or before the save of the last one.

    When there is space again, the same command is to end it.
    """
    run_dir, save = Path(shutil.copytree(begun, disk / "run")), Checkpoints.save

    def starved_save(self: Checkpoints, at: int, state: TrainState) -> None:
        if at == step:
            self.wait()  # old checkpoints may otherwise still be deleted, which frees their space
            fill(disk, room)
        save(self, at, state)

    with on_one_cached_device() as patch:
        patch.setattr(loop, "train_step", at_step(step, lambda: fill(disk, room)))
        patch.setattr(Checkpoints, "save", starved_save)
        code, out, error = command(run_dir, "umd")
    wrong = told(code, out, error, TELLTALE["full"])
    (disk / "ballast").unlink(missing_ok=True)
    return Outcome(False, wrong) if wrong else kept_and_resumed(shared, run_dir, error)


def read_only(begun: Path | None, disk: Path, shared: Path) -> Outcome:
    """Starts or resumes a run on a disk that is read-only."""
    run_dir = disk / "run"
    if begun is not None:
        shutil.copytree(begun, run_dir)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    code, out, error = command(run_dir, "umd")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    if wrong := told(code, out, error, TELLTALE["read-only"]):
        return Outcome(False, wrong)
    return Outcome(not run_dir.exists(), error) if begun is None else kept_and_resumed(shared, run_dir, error)


def main(kind: str, step: str, room: str, disk: str, begun: str, shared: str) -> None:
    if kind == "full":
        outcome = full(int(step), int(room), Path(disk), Path(begun), Path(shared))
    else:
        outcome = read_only(Path(begun) if kind == "read-only-begun" else None, Path(disk), Path(shared))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
