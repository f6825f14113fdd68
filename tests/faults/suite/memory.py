"""A run of 2,000 steps: how fast its memory grows once it is warm, and how often its step is compiled."""

import contextlib
import ctypes
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from faults.suite.apart import apart
from faults.suite.base import Fault, Outcome, Trial
from faults.tiny import tiny

from umd_eqx.runs import describing
from umd_eqx.runs.run import run
from umd_eqx.training import loop
from umd_eqx.training.guards import limit_arenas, memory_used

STEPS, QUICK_STEPS = 2000, 60
EVERY = 10
"""Steps between two rows, and between two measurements."""
MOST_IN_USE, MOST_RESIDENT = 4.0, 20.0
"""Bounds on the slopes in KB per step: of what is allocated, of which 1 is the rows kept for the report; and of
what the process has from the system, of which the C library keeps pieces that are free."""

MOST_ARRAYS = 10
"""The number of arrays by which the second half may grow: those of a step or of a save that is under way."""


class Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")]


def allocated() -> int:
    """The bytes that are allocated in this process: in heaps, and mapped."""
    heap = ctypes.CDLL(None).mallinfo2
    heap.restype = Heap
    found = heap()
    return found.uordblks + found.hblkhd


def long_run(run_dir: str, steps: int) -> dict[str, Any]:
    """In a process of its own: a run with checkpoints, whose memory and compilations are watched."""
    limit_arenas()  # as commands do
    step, compiled, seen = loop.train_step, [], []

    def compilation(event: str, duration_secs: float, **facts: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append((len(counted), str(facts.get("fun_name", ""))))

    counted: list[int] = []

    def watched(parts: Any, state: Any, batch: Any) -> Any:
        counted.append(1)
        if len(counted) % EVERY == 0:
            seen.append([len(counted), memory_used(), allocated(), len(jax.live_arrays())])
        return step(parts, state, batch)

    jax.monitoring.register_event_duration_secs_listener(compilation)
    config = tiny(optim__steps=steps, eval={}, log__every=EVERY, checkpoint__every=max(EVERY, steps // 10))
    peak = mock.patch.object(describing, "peak_flops", return_value=(1e12, "not measured"))
    with mock.patch.object(loop, "train_step", watched), peak, contextlib.redirect_stdout(io.StringIO()):
        run(config, run_dir=run_dir)
    return {"seen": seen, "compiled": compiled}


def slopes(seen: Sequence[Sequence[float]], warm: int) -> tuple[float, float, float]:
    """The slopes by step of the resident and the allocated memory in KB, and of the number of arrays."""
    points = np.array([row for row in seen if row[0] > warm], float)
    centred = points[:, 0] - points[:, 0].mean()
    resident, in_use, arrays = (float(np.polyfit(centred, points[:, column], 1)[0]) for column in (1, 2, 3))
    return resident / 1e3, in_use / 1e3, arrays


def tried(folder: Path, steps: int) -> Outcome:
    """One long run."""
    found = apart(long_run, folder, str(folder / "run"), steps).result()
    resident, in_use, arrays = slopes(found["seen"], steps // 2)
    of_step = [name for _, name in found["compiled"] if "_update" in name]
    late = [f"{name} in step {when}" for when, name in found["compiled"] if when > steps // 2]
    # A short run is not warm in its second half: only what is counted can be compared.
    steady = steps < STEPS or (in_use <= MOST_IN_USE and resident <= MOST_RESIDENT)
    passed = steady and len(of_step) == 1 and not late and abs(arrays) * steps / 2 < MOST_ARRAYS
    figures = {"resident": resident, "in_use": in_use, "arrays": arrays, "compilations": len(of_step), "steps": steps}
    return Outcome(passed, "; ".join([*of_step[1:], *late]), figures)


def trials(quick: bool) -> list[Trial]:
    """One run."""
    steps = QUICK_STEPS if quick else STEPS
    return [Trial(f"{steps}-steps", lambda folder: tried(folder, steps))]


def summary(outcomes: Sequence[Outcome]) -> str:
    """The figures of the run."""
    if not outcomes or not outcomes[0].figures:
        return "no figure"
    it = outcomes[0].figures
    return (
        f"memory in use {it['in_use']:+.1f}, resident {it['resident']:+.1f} KB a step when warm, arrays "
        f"{it['arrays']:+.2f}; {it['compilations']:.0f} compilation of the step in {it['steps']:.0f}"
    )


FAULT = Fault("memory", "2,000 steps", trials, summary)
