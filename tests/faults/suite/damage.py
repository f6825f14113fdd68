"""Damage to the files of a run: flipped bits, and files that are truncated, emptied or deleted.

The run was killed in its last evaluation, so that every file that a run can leave is there. A damaged checkpoint is
restored, and with other damage the run is resumed to its end. The state is then that of the undisturbed run, or
something was said: a warning, or an error in one line. Never is it silently another one.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from faults.suite.base import Fault, Outcome, Trial
from faults.suite.in_process import command
from faults.suite.runs import Reference, differences, made_once, reference, restore
from faults.tiny import ended, start, wait_until_held
from faults.tiny_methods import STEPS

from umd_eqx.core.errors import BadInput

FLIPS = 200

FILES = (
    ".lock",
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "pending.json",
    "results.json",
    "report.html",
    "pictures/*/*.png",
    *(
        f"checkpoints/{STEPS}/{name}"
        for name in (
            "crc32.json",
            "_CHECKPOINT_METADATA",
            "commit_success.txt",
            "state/_METADATA",
            "state/_sharding",
            "state/array_metadatas/process_0",
            "state/commit_success.txt",
            "state/manifest.ocdbt",
            "state/d/*",
            "state/ocdbt.process_0/manifest.ocdbt",
            "state/ocdbt.process_0/d/*",
        )
    ),
)
"""The kinds of files that are truncated, emptied and deleted: of several, the largest."""


def kill_in_the_last_evaluation(run_dir: Path) -> None:
    process = start(run_dir, preset="tiny-umd", hold_evaluation=STEPS)
    wait_until_held(process, run_dir)
    while not (run_dir / f"checkpoints/{STEPS}/crc32.json").exists():
        time.sleep(0.02)
    process.kill()
    ended(process)


def copied(folder: Path) -> Path:
    """Returns a copy of the killed run, to be damaged."""
    return Path(shutil.copytree(made_once(folder.parents[1], "killed", kill_in_the_last_evaluation), folder / "run"))


def seen(run_dir: Path, folder: Path, path: Path, what: str) -> Outcome:
    """Restores the checkpoint or resumes the run after damage to a file; see `judged`."""
    whole = reference(folder.parents[1], "umd")
    name = f"{what} {path.relative_to(run_dir)}"
    if path.is_relative_to(run_dir / "checkpoints"):
        return restored(run_dir, whole, name)
    return resumed(run_dir, whole, name)


def judged(name: str, *, said: str = "", wrong: str = "", metrics: bool = False) -> Outcome:
    """Returns the outcome: noticed, changed nothing, changed numbers of the metrics alone, or silently wrong."""
    figures = {"noticed": bool(said), "metrics": metrics and not said}
    what = f"noticed: {said[:160]}" if said else f"SILENT: {wrong}" if wrong else "nothing changed"
    if metrics and not said:
        what = "a number of the metrics changed"
    return Outcome(not wrong, f"{name}: {what}", {key: float(x) for key, x in figures.items()})


def restored(run_dir: Path, whole: Reference, name: str) -> Outcome:
    try:
        found = restore(run_dir, "umd")
    except BadInput as error:
        return judged(name, said=str(error))
    same = found.digests == whole.digests[found.step]
    said = "; ".join(found.said)
    wrong = "" if same and (said or found.step == STEPS) else f"another state at step {found.step}"
    return judged(name, said=said, wrong=wrong)


def resumed(run_dir: Path, whole: Reference, name: str) -> Outcome:
    code, out, error = command(run_dir, "umd")
    said = "; ".join(line.strip() for line in out.splitlines() if "warning" in line)
    if code == 2:
        kept = restore(run_dir, "umd")
        same = kept.digests == whole.digests[STEPS] and len(error.splitlines()) == 1
        return judged(name, said=error.strip(), wrong="" if same else f"another state is left, or said {error}")
    if code != 0:
        return judged(name, wrong=f"exit code {code}: {error.strip()[-200:]}")
    wrong = differences(run_dir, "umd", whole, drawn=False)
    metrics = wrong == "losses"
    return judged(name, said=said, wrong="" if metrics else wrong, metrics=metrics)


def flip(number: int, folder: Path) -> Outcome:
    """Flips a random bit of a file; one file after the other."""
    run_dir, rng = copied(folder), np.random.default_rng([2, number])
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[number % len(files)]
    data = bytearray(path.read_bytes())
    position, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return seen(run_dir, folder, path, f"bit {bit} of byte {position} of")


def harm(pattern: str, what: str, do: Callable[[Path], None], folder: Path) -> Outcome:
    run_dir = copied(folder)
    path = max(run_dir.glob(pattern), key=lambda path: path.stat().st_size)
    do(path)
    return seen(run_dir, folder, path, what)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def trials(quick: bool) -> Sequence[Trial]:
    ways = {"truncated": truncate, "emptied": lambda path: path.write_bytes(b""), "deleted": Path.unlink}
    flips = [Trial(f"flip-{n}", lambda folder, n=n: flip(n, folder)) for n in range(FLIPS)]
    others = [
        Trial(f"{what}-{pattern.replace('/', '-')}", lambda folder, p=pattern, w=what, d=do: harm(p, w, d, folder))
        for pattern in FILES
        for what, do in ways.items()
    ]
    return [*flips[:6], *(trial for trial in others if "manifest" in trial.name)] if quick else [*flips, *others]


def summary(outcomes: Sequence[Outcome]) -> str:
    good = [outcome for outcome in outcomes if outcome.passed]
    noticed, metrics = (int(sum(outcome.figures[name] for outcome in good)) for name in ("noticed", "metrics"))
    quiet = len(good) - noticed - metrics
    return (
        f"noticed {noticed}/{noticed + len(outcomes) - len(good)} of those that change state; {quiet} changed nothing, "
        f"{metrics} changed recorded metrics alone (trials: {len(outcomes)})"
    )


FAULT = Fault(
    "damage", "one bit flipped, 200 times over all files of a run; truncated, emptied, deleted files", trials, summary
)
