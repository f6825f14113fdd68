"""What is watched while a run is on: steps that are not finite, jumps of the loss, and the memory of the process."""

import collections
import contextlib
import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import replacing
from umd_eqx.core.types import Batch, Metrics

SPIKE = 5.0
"""A loss that is this many times the median of the steps before it is a spike."""

SPIKE_WINDOW = 64
"""The number of steps in that median."""

FEWEST_LOSSES = 16
"""The number of steps before which no loss is called a spike."""

FEWEST_ROWS = 20
"""The number of rows before which no growth of the memory is reported."""

RELEASE_SECONDS = 10.0
"""The least time between two releases of free memory: each takes up to a few milliseconds."""

_M_ARENA_MAX = -8  # of malloc.h

DUMPS = "dumps"
"""The folder in a run directory for the batches of runs that stopped because their loss was not finite."""


class Guard:
    """Watches each step: whether it was skipped because the loss or gradient was not finite, and jumps of the loss.

    Each step is checked one step later, to avoid blocking the device.

    **Arguments:**

    - `most`: the number of consecutive skipped steps after which the run stops.
    - `warn`: called with a line of text.
    - `folder`: where the batch of the last such step is written; None to write none.
    """

    def __init__(self, most: int, warn: Callable[[str], None], folder: Path | None = None):
        self.most, self.warn, self.folder = most, warn, folder
        self.in_a_row = 0
        self.spikes = 0
        self.losses: collections.deque[float] = collections.deque(maxlen=SPIKE_WINDOW)
        self.pending: tuple[int, Metrics, Batch | None] | None = None

    def watch(self, step: int, metrics: Metrics, batch: Batch | None = None) -> None:
        """Records a step. Raises `BadInput` if `most` consecutive steps were skipped."""
        self.settle()
        self.pending = (step, metrics, batch)

    def settle(self) -> None:
        """Checks the last recorded step."""
        if self.pending is None:
            return
        (step, metrics, batch), self.pending = self.pending, None
        self.in_a_row = self.in_a_row + 1 if int(metrics["skipped"]) else 0
        if self.in_a_row == 0 and "loss" in metrics:
            self._look_for_a_spike(step, float(metrics["loss"]))
        if self.in_a_row == 1:
            self.warn(f"step {step}: loss or gradient is not finite; the step is skipped")
        if self.in_a_row >= self.most:
            where = self._dump(step, metrics, batch)
            raise BadInput(
                "optim.lr",
                f"loss or gradient was not finite for {self.most} steps in a row, the last of them step {step}{where}",
                "Use a smaller learning rate, or `model.dtype=float32`; the last checkpoint is not affected",
            )

    def _look_for_a_spike(self, step: int, loss: float) -> None:
        usual = statistics.median(self.losses) if len(self.losses) >= FEWEST_LOSSES else None
        self.losses.append(abs(loss))
        if usual is not None and abs(loss) > SPIKE * usual > 0:
            self.spikes += 1
            times = abs(loss) / usual
            self.warn(f"step {step}: the loss jumped to {loss:.4g}, {times:.0f} times that of the steps before")

    def _dump(self, step: int, metrics: Metrics, batch: Batch | None) -> str:
        """Writes the batch and the metrics of a step; returns where, in words."""
        if self.folder is None or batch is None or not jax.tree.all(jax.tree.map(_is_here, batch)):
            return ""
        try:
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"{step}.npz"
            facts = json.dumps({"step": step, **{name: float(value) for name, value in metrics.items()}})
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, metrics=facts, image=batch.image, label=batch.label, valid=batch.valid)
        except OSError as error:
            self.warn(f"the batch of step {step} could not be written to {self.folder} ({error.strerror})")
            return ""
        return f" (its batch is in {path})"


class MemoryWatch:
    """Measures the memory of this process on the host, and its growth by step.

    Memory that is free, but kept by the C library, is given back to the system before (`release_free_memory`).

    **Arguments:**

    - `last`: the last step of the run.
    - `warn`: called with a line of text, once, if the memory that is left will not last.
    - `used`, `left`: return the memory that the process uses, and that the machine has left, in bytes.
    - `release`: gives free memory back to the system.
    - `clock`: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        last: int,
        warn: Callable[[str], None],
        used: Callable[[], int | None] = lambda: memory_used(),
        left: Callable[[], int | None] = lambda: memory_left(),
        release: Callable[[], None] = lambda: release_free_memory(),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.last, self.warn, self.used, self.left = last, warn, used, left
        self.release, self.clock, self.released = release, clock, -RELEASE_SECONDS
        self.points: collections.deque[tuple[int, int]] = collections.deque(maxlen=5 * FEWEST_ROWS)
        self.warned = False

    def row(self, step: int) -> dict[str, float]:
        """Returns the memory in MB, and its slope over the last rows in KB per step, empty where it is not known.

        The slope is that of the least squares.
        """
        if (now := self.clock()) - self.released >= RELEASE_SECONDS:
            self.release()
            self.released = now
        used = self.used()
        if used is None:
            return {}
        self.points.append((step, used))
        row = {"throughput/host_memory_mb": used / 1e6}
        if len(self.points) < FEWEST_ROWS:
            return row
        steps, sizes = np.array(self.points, np.float64).T
        slope = float(np.polyfit(steps - steps.mean(), sizes, 1)[0])
        self._warn_of(slope, step)
        return row | {"throughput/host_memory_kb_per_step": slope / 1e3}

    def _warn_of(self, slope: float, step: int) -> None:
        left = self.left()
        if left is None or self.warned or slope * (self.last - step) <= left:
            return
        self.warned = True
        self.warn(
            f"memory grows by {slope / 1e3:.0f} KB a step: the {left / 1e9:.1f} GB that are left would last until step "
            f"{step + round(left / slope)} of {self.last}"
        )


def memory_used() -> int | None:
    """Returns the resident memory of this process in bytes; None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def limit_arenas(most: int = 2) -> None:
    """Lets the threads of this process share `most` pools of free memory, where the C library can (glibc).

    By default, glibc has up to eight pools for each processor, from which threads take turns, and JAX and orbax start a
    hundred threads: a run whose arrays took no more memory grew by 10 to 40 MB in 1,000 steps, and took 100 MB more.
    Call it before JAX starts. Values in the environment, `MALLOC_ARENA_MAX` and `GLIBC_TUNABLES`, have precedence.
    """
    if "MALLOC_ARENA_MAX" in os.environ or "malloc.arena" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, most)


def release_free_memory() -> None:
    """Gives memory that the process has freed back to the system, where its C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_left() -> int | None:
    """Returns the memory that the machine has left for programs, in bytes; None where the system does not say."""
    try:
        with open("/proc/meminfo", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _is_here(array: jax.Array | np.ndarray) -> bool:
    return not isinstance(array, jax.Array) or array.is_fully_addressable
