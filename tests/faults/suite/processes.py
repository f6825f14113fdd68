"""Two processes of a run, one of which is killed, is stopped, raises or hangs."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from faults.suite.base import Fault, Outcome, Trial
from faults.tiny import ended
from faults.together import reached, resumed, started

WAYS = ("killed", "stopped", "raises", "hangs")
LONGEST = 60.0
"""Seconds in which the other process must leave."""


def trial(way: str, which: int, folder: Path) -> Outcome:
    run_dir = folder / "run"
    variables = {"raises": {"RAISE_AFTER": "3"}, "hangs": {"HOLD_AFTER": "3"}}.get(way, {})
    patience = ("--sharding.hang-seconds", "20")
    processes = started(run_dir, *patience, count=2, seconds_a_step=0.3, which=which, variables=variables)
    reached(run_dir, processes, 3)
    if way in ("killed", "stopped"):
        processes[which].send_signal(signal.SIGKILL if way == "killed" else signal.SIGSTOP)
    began = time.monotonic()
    code, _, error = ended(processes[1 - which], 300.0)
    seconds = time.monotonic() - began
    processes[which].kill()
    _, _, other = ended(processes[which])
    # With process 0 the service ends, on which JAX aborts the others.
    expected = (1,) if way == "raises" else (75, -signal.SIGABRT) if (way, which) == ("killed", 0) else (75,)
    if code not in expected or seconds > LONGEST:
        return Outcome(False, f"the other left with {code} after {seconds:.0f} s: {(error + other).strip()[-200:]}")
    resumed(run_dir, folder.parent / "whole")
    return Outcome(True, f"the other left with {code}", {"seconds": seconds})


def trials(quick: bool) -> Sequence[Trial]:
    named = [("raises", 1)] if quick else [(way, which) for way in WAYS for which in (0, 1)]
    return [
        Trial(f"{way}-{which}", lambda folder, way=way, which=which: trial(way, which, folder)) for way, which in named
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    passed = [outcome for outcome in outcomes if outcome.passed]
    worst = max((outcome.figures["seconds"] for outcome in passed), default=float("nan"))
    return f"left and resumed {len(passed)}/{len(outcomes)}, the slowest in {worst:.0f} s"


FAULT = Fault("processes", "two processes: one killed, stopped, raises, hangs", trials, summary)
