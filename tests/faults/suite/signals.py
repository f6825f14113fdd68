"""SIGTERM and Ctrl-C in each phase of a program: it saves and leaves, and the same command goes on."""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.suite.base import Fault, Outcome, Trial
from faults.suite.in_process import command
from faults.suite.other_signals import encode, import_libraries, sample
from faults.suite.runs import batches, begin, differences, reference, restore
from faults.suite.waiting import read_errors_until
from faults.tiny import ended, let_go, wait_until_held

TERM, INT = signal.SIGTERM, signal.SIGINT
HELD_SECONDS = 0.3
"""Seconds from the signal until a process that is held in a step or a save is let go."""

PHASES: dict[str, dict[str, Any]] = {
    "train-first": {"hold_after": 1},
    "train-later": {"hold_after": 16},
    "evaluate": {"hold_evaluation": 12},
    "evaluate-last": {"hold_evaluation": 24},
    "save": {"HOLD_SAVE": "6"},
    "seal": {"HOLD_SEAL": "6", "seconds_a_step": 2.0},
}
"""Where a run is held while it is signalled."""


def signalled(process: subprocess.Popen[str], run_dir: Path, phase: str, numbers: Sequence[int]) -> tuple[int, str]:
    """Sends signals to a run that is held; returns its exit code and what it said on stderr.

    In an evaluation it is to leave at once; a step and a save are let go.
    """
    process.send_signal(numbers[0])
    for number in numbers[1:]:
        time.sleep(HELD_SECONDS)  # two at the same moment would be one to a process
        process.send_signal(number)
    if not phase.startswith("evaluate"):
        time.sleep(HELD_SECONDS)
        let_go(run_dir)
    code, _, error = ended(process)
    return code, error


def outcome_of(run_dir: Path, folder: Path, code: int, expected: int, error: str, seconds: float) -> Outcome:
    """Compares what a signal left with the undisturbed run, lets the same command finish, and compares again."""
    whole, begun = reference(folder.parents[1], "umd"), max(batches(run_dir), default=-1) + 1
    committed = any(path.name.isdecimal() for path in (run_dir / "checkpoints").glob("*"))
    saved = restore(run_dir, "umd") if committed else None
    step = 0 if saved is None else saved.step
    figures = {"seconds": round(seconds, 2), "steps_lost": begun - step}
    wrong = [] if code == expected else [f"exit code {code} ({error.strip()[-100:]})"]
    if saved is not None and (saved.said or saved.digests != whole.digests[step]):
        wrong.append("another state was saved")
    if begun - step > 1:
        wrong.append(f"{begun - step} steps lost")
    code, _, error = command(run_dir, "umd")
    if (code, error) != (0, ""):
        wrong.append(f"the same command ended with {code}: {error.strip()[-200:]}")
    elif different := differences(run_dir, "umd", whole):
        wrong.append(different)
    return Outcome(not wrong, "; ".join(wrong) or f"saved at step {step} of {begun}, then identical", figures)


def in_a_run(phase: str, numbers: Sequence[int], folder: Path) -> Outcome:
    """Signals a run that is held in a phase."""
    run_dir = folder / "run"
    process = begin(run_dir, "umd", **PHASES[phase])
    wait_until_held(process, run_dir)
    began = time.monotonic()
    code, error = signalled(process, run_dir, phase, numbers)
    # A second Ctrl-C leaves without a save.
    expected = 130 if [*numbers] == [INT, INT] else 75
    return outcome_of(run_dir, folder, code, expected, error, time.monotonic() - began)


def while_compiling(number: int, folder: Path) -> Outcome:
    """Signals a run while XLA compiles its step, for a user: with all optimisations, and nothing cached."""
    run_dir = folder / "run"
    variables = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_LOG_COMPILES": "1"}
    process = begin(run_dir, "umd", optimise=True, **variables)
    read_errors_until(process, "MLIR module conversion jit(_update)")
    began = time.monotonic()
    process.send_signal(number)
    code, _, error = ended(process)
    return outcome_of(run_dir, folder, code, 75, error, time.monotonic() - began)


def trials(quick: bool) -> Sequence[Trial]:
    found = []

    def add(phase: str, function: Any, *numbers: int) -> None:
        name = "-".join([phase, *(signal.Signals(number).name.lower() for number in numbers)])
        found.append(Trial(name, function))

    for number in (TERM, INT):
        add("import", lambda folder, n=number: import_libraries(n, folder), number)
        add("compile", lambda folder, n=number: while_compiling(n, folder), number)
        add("sample-compile", lambda folder, n=number: sample(n, folder, compiling=True), number)
        add("sample", lambda folder, n=number: sample(n, folder, compiling=False), number)
        for batch in (1, 4):
            add(f"encode-{batch}", lambda folder, n=number, b=batch: encode(n, b, folder), number)
        for phase in ("train-first", "train-later", "evaluate", "evaluate-last", "save"):
            add(phase, lambda folder, p=phase, n=number: in_a_run(p, (n,), folder), number)
    for numbers in ((TERM, TERM), (INT, TERM), (INT, INT)):
        add("seal", lambda folder, n=numbers: in_a_run("seal", n, folder), *numbers)
    quick_ones = ("import-sigterm", "evaluate-sigterm")
    return [trial for trial in found if not quick or trial.name in quick_ones]


def summary(outcomes: Sequence[Outcome]) -> str:
    saved, lost, seconds = sum(outcome.passed for outcome in outcomes), 0.0, 0.0
    for outcome in outcomes:
        lost = max(lost, outcome.figures.get("steps_lost", 0.0))
        seconds = max(seconds, outcome.figures.get("seconds", 0.0))
    return f"saved {saved}/{len(outcomes)}, at most {lost:.0f} step lost, worst {seconds:.1f} s"


FAULT = Fault(
    "signals",
    "SIGTERM and Ctrl-C while a program imports, compiles, trains, evaluates, samples, encodes latents and saves; a "
    "second signal during the save",
    trials,
    summary,
)
