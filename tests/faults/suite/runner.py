"""Runs the trials of a fault in a process of their own, and keeps what they showed in a file."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from faults.suite.base import Fault, Outcome
from faults.suite.sources import ROOT

RESULTS = "results.jsonl"
"""The file of finished trials in the work folder."""


class Results:
    """The outcomes of finished trials of this code, by fault and trial; in a file, so that a later call goes on."""

    def __init__(self, path: Path):
        self._path = path
        self.rows: dict[tuple[str, str, str], tuple[Outcome, float]] = {}
        whole = path.read_bytes() if path.exists() else b""
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # cut off by a kill
                row = json.loads(line)
                outcome = Outcome(bool(row["passed"]), str(row["note"]), row["figures"])
                self.rows[row["fault"], row["trial"], row["code"]] = outcome, float(row["seconds"])
        if whole and not whole.endswith(b"\n"):
            path.write_bytes(whole + b"\n")

    def get(self, fault: str, trial: str, code: str) -> tuple[Outcome, float] | None:
        """Returns what a trial showed and the seconds that it took, or None if it is not finished."""
        return self.rows.get((fault, trial, code))

    def add(self, fault: str, trial: str, code: str, outcome: Outcome, seconds: float) -> None:
        """Appends a finished trial."""
        self.rows[fault, trial, code] = outcome, seconds
        row = {"fault": fault, "trial": trial, "code": code, "seconds": round(seconds, 2)} | outcome._asdict()
        with self._path.open("a") as file:
            file.write(json.dumps(row | {"figures": dict(outcome.figures)}) + "\n")


class _Worker:
    """A process with the trials of one fault (`faults.suite.worker`), in one group with all that it starts."""

    def __init__(self, fault: Fault, quick: bool, work: Path, limit: float):
        self._limit = limit
        log = (work / f"{fault.name}.log").open("a")
        self._read, write = os.pipe()
        words = [fault.trials.__module__, "quick" if quick else "full", str(work / fault.name), str(write)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.suite.worker", *words],
            env=environment(work, limit),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(write,),
            start_new_session=True,
            text=True,
        )
        log.close()
        os.close(write)
        self._lines = os.fdopen(self._read)
        self._lines.readline()  # the time that the imports take is not that of a trial

    def attempt(self, trial: str) -> Outcome:
        """Returns what a trial showed. It fails if it takes longer than the limit or ends the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{trial}\n")
            self.process.stdin.flush()
        if not select.select([self._lines], [], [], self._limit)[0]:
            return Outcome(False, f"still running after {self._limit:.0f} s, ended")
        line = self._lines.readline()
        if not line:
            return Outcome(False, f"the process of the trials ended with code {self.process.wait()}")
        return Outcome(*json.loads(line))

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._lines.close()
        stdin: IO[str] | None = self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            assert stdin is not None
            stdin.close()


def environment(work: Path, limit: float) -> dict[str, str]:
    """Returns the variables of the process of the trials: one device, and one cache of compiled programs for all.

    Programs compiled for one device of several differ from those of a process with one device in the last bits.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "UMD_EQX_TEST_SECONDS": str(limit),
        "UMD_EQX_TEST_CACHE": os.environ.get("UMD_EQX_TEST_CACHE", str(work / "compiled")),
    }


@contextlib.contextmanager
def _worker_of(fault: Fault, quick: bool, work: Path, limit: float) -> Iterator[Callable[[str], Outcome]]:
    """Yields the function that attempts a trial. After one that failed, all that it may have left is ended."""
    workers: list[_Worker] = []

    def attempt(trial: str) -> Outcome:
        if not workers:
            workers.append(_Worker(fault, quick, work, limit))
        outcome = workers[0].attempt(trial)
        if not outcome.passed:
            workers.pop().end()
        return outcome

    try:
        yield attempt
    finally:
        for worker in workers:
            worker.end()


class Row(NamedTuple):
    """What the trials of one fault showed."""

    fault: Fault
    outcomes: Sequence[Outcome]
    failures: Sequence[str]
    """A line for each trial that did not pass."""
    seconds: float


def run_fault(
    fault: Fault,
    code: str,
    *,
    quick: bool,
    work: Path,
    results: Results,
    limit: float,
    tell: Callable[[str], None],
) -> Row:
    """Runs the trials of a fault that are not in `results`, one after the other.

    `code` is `code_digest`, `limit` the seconds after which a trial is ended and fails, and `tell` takes a line for
    each trial that is finished.
    """
    trials = fault.trials(quick)
    assert len({trial.name for trial in trials}) == len(trials), f"{fault.name}: trials with the same name"
    done: list[tuple[str, Outcome, float]] = []
    new: list[float] = []
    with _worker_of(fault, quick, work, limit) as attempt:
        for trial in trials:
            found = results.get(fault.name, trial.name, code)
            if found is None:
                began = time.monotonic()
                outcome = attempt(trial.name)
                found = outcome, time.monotonic() - began
                results.add(fault.name, trial.name, code, *found)
                new.append(found[1])
            done.append((trial.name, *found))
            if new:
                left = (len(trials) - len(done)) * sum(new) / len(new)
                what = "passed" if found[0].passed else "FAILED"
                count = f"{fault.name} {len(done)}/{len(trials)}"
                tell(f"{count}  {what}  {trial.name}  {found[1]:.0f} s  {found[0].note}  eta {left:.0f} s")
    failures = [f"{fault.name} {name}: {outcome.note}" for name, outcome, _ in done if not outcome.passed]
    return Row(fault, [outcome for _, outcome, _ in done], failures, sum(seconds for *_, seconds in done))
