"""Disks in trouble: full, read-only, failing, and run directories that are taken away while the run is on.

The run was killed after step 15 and goes on. It is to end with one line; the last good checkpoint is then still there,
and once the trouble is over, the same command ends as the undisturbed run.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.suite.base import Fault, Outcome, Trial
from faults.suite.in_process import command, on_one_cached_device
from faults.suite.runs import begin, differences, made_once, reference, restore
from faults.test_disk_full import fill_up
from faults.test_vanished import delete_metrics, rename, replace, replace_metrics
from faults.tiny import ended, wait_until_held

from umd_eqx.training import loop
from umd_eqx.training.checkpoint import FOLDER

BEGUN = 15
"""The step of the newest checkpoint when the trouble begins; the next ones are 18, 21 and 24."""


def delete(run_dir: Path) -> None:
    shutil.rmtree(run_dir, ignore_errors=True)  # a save that is under way may still write into its folder


HARMS: dict[str, Callable[[Path], object]] = {
    "delete": delete,
    "rename": rename,
    "replace": replace,
    "delete-metrics": delete_metrics,
    "replace-metrics": replace_metrics,
}

TELLTALE = {"deleted": "was deleted, renamed or replaced", "read-only": "cannot be", "full": "is full"}


def kill_after_a_step(run_dir: Path) -> None:
    process = begin(run_dir, "umd", hold_after=BEGUN + 1)
    wait_until_held(process, run_dir)
    while not (run_dir / f"checkpoints/{BEGUN}/crc32.json").exists():
        time.sleep(0.02)
    process.kill()
    ended(process)


def begun(work: Path) -> Path:
    """Returns the run that was killed, which trials share."""
    return made_once(work, "begun", kill_after_a_step)


def at_step(step: int, do: Callable[[], object]) -> Callable[..., object]:
    """Returns a training step that does something once, before the step after `step` steps."""
    whole, done = loop.train_step, []

    def harmed(parts, state, batch):
        if int(state.step) == step and not done:
            done.append(step)
            do()
        return whole(parts, state, batch)

    return harmed


def told(code: int, out: str, error: str, telltale: str) -> str:
    """Returns what is wrong with the end of a run in trouble; empty if it is one clear line."""
    if code != 2 or len(error.splitlines()) != 1 or telltale not in error or "Traceback" in out:
        return f"exit code {code}, said {error.strip()[-200:]!r}"
    return ""


def kept_and_resumed(shared: Path, run_dir: Path, error: str) -> Outcome:
    """Compares the last checkpoint with the undisturbed run, lets the same command finish, and compares again."""
    whole = reference(shared, "umd")
    kept = restore(run_dir, "umd")
    if kept.step < BEGUN or kept.digests != whole.digests[kept.step]:
        return Outcome(False, f"step {kept.step} is kept, and not as it was")
    code, _, again = command(run_dir, "umd")
    if code != 0:
        return Outcome(False, f"the same command ended with {code}: {again.strip()[-200:]}")
    wrong = differences(run_dir, "umd", whole, drawn=False)
    return Outcome(not wrong, wrong or f"step {kept.step} kept, then identical; {error.strip()[:160]}")


def failing(name: str, number: int, folder: Path) -> Outcome:
    """Lets each write of a file fail with an error of the system."""
    run_dir = Path(shutil.copytree(begun(folder.parents[1]), folder / "run"))
    with on_one_cached_device() as patch:
        fill_up(patch, rf"{re.escape(name)}(\..*)?", number)
        code, out, error = command(run_dir, "umd")
    wrong = told(code, out, error, TELLTALE["full"] if number == errno.ENOSPC else os.strerror(number))
    return Outcome(False, wrong) if wrong else kept_and_resumed(folder.parents[1], run_dir, error)


def taken_away(harm: Callable[[Path], object], step: int, folder: Path) -> Outcome:
    """Deletes, renames or replaces the run directory or its metrics while the run is on."""
    run_dir = Path(shutil.copytree(begun(folder.parents[1]), folder / "run"))
    with on_one_cached_device() as patch:
        patch.setattr(loop, "train_step", at_step(step, lambda: harm(run_dir)))
        code, out, error = command(run_dir, "umd")
    if wrong := told(code, out, error, TELLTALE["deleted"]):
        return Outcome(False, wrong)
    if harm is delete:
        anew = [path.name for path in run_dir.rglob("*.json*") if FOLDER not in path.parts]
        return Outcome(not anew, f"{', '.join(anew) or 'nothing'} written anew")
    if harm in (rename, replace):
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.with_name("elsewhere").rename(run_dir)
    if harm is delete_metrics:
        shutil.copy(begun(folder.parents[1]) / "metrics.jsonl", run_dir)
        shutil.rmtree(run_dir / "checkpoints")
        shutil.copytree(begun(folder.parents[1]) / "checkpoints", run_dir / "checkpoints")
    return kept_and_resumed(folder.parents[1], run_dir, error)


def on_small_disk(kind: str, step: int, room: int, folder: Path) -> Outcome:
    """Runs `small_disk.py` with a file system in memory, which no other process sees and which ends with it."""
    disk, shared = folder / "disk", folder.parents[1]
    disk.mkdir()
    reference(shared, "umd")
    words = [sys.executable, "-m", "faults.suite.small_disk", kind, str(step), str(room)]
    mount = f"mount -t tmpfs -o size=64m none '{disk}' && exec \"$@\""
    given = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *words]
    done = subprocess.run([*given, str(disk), str(begun(shared)), str(shared)], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    if done.returncode != 0:
        return Outcome(False, f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    return Outcome(*json.loads(done.stdout.splitlines()[-1]))


def trials(quick: bool) -> Sequence[Trial]:
    found = [
        Trial(f"full-{step}-{room}", lambda folder, s=step, r=room: on_small_disk("full", s, r, folder))
        for step in (16, 17, 24)
        for room in (0, 4096, 1_000_000)
    ]
    found += [
        Trial(f"read-only-{kind}", lambda folder, k=kind: on_small_disk(f"read-only-{k}", 0, 0, folder))
        for kind in ("new", "begun")
    ]
    files = ("config.json", "environment.json", "metrics.jsonl", "pending.json", "results.json", "report.html")
    errors = [(name, errno.ENOSPC) for name in (*files, "crc32.json", "00000024.png")]
    errors += [("metrics.jsonl", number) for number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)]
    found += [
        Trial(f"{errno.errorcode[number]}-{name}", lambda folder, f=name, n=number: failing(f, n, folder))
        for name, number in errors
    ]
    found += [
        Trial(f"{name}-{step}", lambda folder, h=harm, s=step: taken_away(h, s, folder))
        for name, harm in HARMS.items()
        for step in (16, 18)
    ]
    quick_ones = ("full-17-1000000", "read-only-begun", "rename-16")
    return [trial for trial in found if not quick or trial.name in quick_ones]


def summary(outcomes: Sequence[Outcome]) -> str:
    passed = sum(outcome.passed for outcome in outcomes)
    return f"clear error, last good kept, then identical {passed}/{len(outcomes)}"


FAULT = Fault(
    "disk",
    "disk full (small tmpfs), read-only directory, errors of the disk, directory deleted while running",
    trials,
    summary,
)
