"""A fault for the tests of the suite itself: trials that pass, fail, raise, hang and crash."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from faults.suite.base import Fault, Outcome, Trial


def passes(folder: Path) -> Outcome:
    with (folder.parent / "passes.count").open("a") as file:
        file.write("once\n")
    return Outcome(not [*folder.iterdir()], "seen", {"seconds": 1.5})


def fails(folder: Path) -> Outcome:
    (folder / "evidence").touch()
    return Outcome(False, "another state")


def raises(folder: Path) -> Outcome:
    raise SystemExit("an error\nwith details")


def hangs(folder: Path) -> Outcome:
    child = subprocess.Popen(["sleep", "1000"])
    (folder.parent / "hangs.pid").write_text(str(child.pid))
    time.sleep(1000)
    return Outcome(True)


def crashes(folder: Path) -> Outcome:
    os._exit(3)


def trials(quick: bool) -> Sequence[Trial]:
    known = (passes, fails, raises, hangs, crashes)
    named = [Trial(function.__name__, function) for function in known]
    return [named[0]] if quick else [*named, Trial("passes-too", passes)]


def summary(outcomes: Sequence[Outcome]) -> str:
    seconds = max(outcome.figures.get("seconds", 0.0) for outcome in outcomes)
    return f"{sum(outcome.passed for outcome in outcomes)}/{len(outcomes)}, worst {seconds} s"


FAULT = Fault("example", "an example", trials, summary)
