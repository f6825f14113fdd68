"""Command lines at random: each is taken, up to what would be computed, or refused in a few lines with exit code 2."""

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from faults.suite.apart import apart
from faults.suite.base import Fault, Outcome, Trial

BLOCK, BLOCKS, QUICK = 100, 20, 150
LONGEST_SECONDS = 60
"""The processor time after which a command line is taken to hang; most take less than a second."""
LONGEST_WAIT = 300
"""The same by the clock, for what waits and computes nothing; the machine may be busy."""
MEMORY_GB = 24.0
"""Of address space, much of which libraries reserve and never use."""


class Reached(BaseException):
    """A command was about to compute: its configuration was taken."""


class Hung(BaseException):
    """The time of a command line is over."""


def reached(*_: Any, **__: Any) -> Any:
    """Ends a command where it would compute."""
    raise Reached


def no_memory(*_: Any) -> Any:
    """In the place of the memory of a dry run, for which all programs would be compiled."""
    from umd_eqx.core.programs import Memory

    return Memory(0, 0, 0), ""


@contextlib.contextmanager
def nothing_computed(evaluate_until: str = "ReferenceStatistics") -> Iterator[None]:
    """A context in which commands end where they would lock a directory, sample, or compile.

    `evaluate_until` is the function of `evaluate.py` at which that command ends.
    """
    from umd_eqx.commands import evaluate, sample
    from umd_eqx.core.errors import require_short
    from umd_eqx.runs import dryrun, lock, writer

    def locked(directory: Path, field: str = "run_dir") -> None:
        require_short(field, directory, lock.LONGEST_INSIDE)
        raise Reached

    with contextlib.ExitStack() as stack:
        for module, name, instead in (
            (writer, "locked", locked),
            (dryrun, "_memory", no_memory),
            (dryrun, "peak_flops", lambda: (1e12, "not measured")),
            (sample, "sample_images", reached),
            (evaluate, evaluate_until, reached),
        ):
            stack.enter_context(mock.patch.object(module, name, instead))
        yield


def limit(seconds: float, wait: float) -> None:
    """Raises `Hung` after so much processor time, or time by the clock; 0 to take this back."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wait)


def hung(*_: Any) -> None:
    """The handler of both timers."""
    raise Hung


def end_of(words: list[str]) -> tuple[str, str]:
    """Returns how a command line ended, "taken" or "refused" if it should, and what is to be told of it otherwise."""
    from umd_eqx.commands.cli import main
    from umd_eqx.recipes.pretrain import PRETRAIN

    # As a terminal is: bytes that are not UTF-8 cannot be printed to stdout.
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    error = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    code: Any = None
    limit(LONGEST_SECONDS, LONGEST_WAIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            main(PRETRAIN, words)
    except Reached:
        return "taken", ""
    except Hung:
        return "hang", traceback.format_exc()
    except SystemExit as end:
        code = end.code
    except BaseException:
        return "traceback", traceback.format_exc()
    finally:
        limit(0, 0)
    said = error.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]
    if code in (0, None):
        return "taken", ""
    if code != 2 or "Traceback" in said:
        return "traceback", f"exit code {code}: {said}"
    # tyro repeats what it does not know, with all flags that are like it.
    box = "╭" in said and len(said.splitlines()) <= 120
    one = said.startswith(("error: ", "warning: ")) and said.count("\n") == 1 and len(said) < 1500
    return ("refused", "") if box or one else ("lines", said)


def block(number: int, examples: int) -> dict[str, Any]:
    """In a process of its own: so many command lines, always the same for a number."""
    os.environ["COLUMNS"] = "200"
    from faults.suite.command_words import command_lines

    from umd_eqx.runs.pretrained import SHIPPED

    for number_of in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number_of, hung)
    counts: dict[str, int] = {}
    found: list[tuple[str, list[str], str]] = []
    slowest = 0.0

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=[*hypothesis.HealthCheck],  # pyright: ignore[reportArgumentType]
    )
    @hypothesis.given(command_lines(str(SHIPPED)))
    def one(words: list[str]) -> None:
        nonlocal slowest
        began = time.monotonic()
        kind, told = end_of(words)
        slowest = max(slowest, time.monotonic() - began)
        counts[kind] = counts.get(kind, 0) + 1
        if told:
            found.append((kind, words, told[-3000:]))

    with nothing_computed():
        one()
    for kind, words, told in found:
        print(f"{kind}: {words!a}\n{told}", file=sys.__stdout__)
    return {"counts": counts, "slowest": slowest, "found": [(kind, words) for kind, words, _ in found]}


def tried(folder: Path, number: int, examples: int) -> Outcome:
    """One block, whose faults are written to a file in the folder."""
    seconds = 300 + 15 * examples  # on a busy machine; a hang ends earlier
    ended = apart(block, folder, number, examples, seconds=seconds, memory_gb=MEMORY_GB)
    (folder / "found.txt").write_text(ended.said, errors="backslashreplace")
    seen = ended.result()
    counts = {name: seen["counts"].get(name, 0) for name in ("taken", "refused", "traceback", "hang", "lines")}
    counts["tried"] = sum(counts.values())
    first = "; ".join(f"{kind} {words!a}" for kind, words in seen["found"][:3])
    figures = counts | {"slowest": seen["slowest"], "peak_mb": ended.peak_mb}
    return Outcome(not seen["found"] and counts["tried"] >= 0.9 * examples, first, figures)


def trials(quick: bool) -> list[Trial]:
    """Blocks of command lines; the quick one has lines of its own."""
    if quick:
        return [Trial("quick", lambda folder: tried(folder, 1000, QUICK))]
    return [Trial(f"block-{n:02}", lambda folder, n=n: tried(folder, n, BLOCK)) for n in range(BLOCKS)]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts command lines over all blocks."""
    names = ("tried", "taken", "refused", "traceback", "hang", "lines")
    n = {name: sum(int(o.figures.get(name, 0)) for o in outcomes) for name in names}
    return (
        f"{n['tried']} tried: {n['taken']} taken, {n['refused']} refused; "
        f"tracebacks {n['traceback']}, hangs {n['hang']}, errors of several lines {n['lines']}"
    )


FAULT = Fault("configurations", "2,000 random configurations", trials, summary)
