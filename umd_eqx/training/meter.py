"""The throughput of training, without the time for anything else."""

import time
from collections.abc import Callable, Iterator

from umd_eqx.core.types import Batch

Row = dict[str, float]


class Meter:
    """Measures the throughput between two rows, without the time for anything other than training.

    **Arguments:**

    - `batch_size`, `flops`: images and FLOPs per step, over all devices.
    - `peak`: peak FLOP/s of all devices together.
    - `wall`: wall time of earlier sessions of the run, in seconds.
    - `clock`: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        batch_size: int,
        flops: int,
        peak: float,
        *,
        wall: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.batch_size, self.flops, self.peak, self.clock = batch_size, flops, peak, clock
        self.began = clock() - wall
        self.restart()

    def restart(self) -> None:
        """Starts a new interval."""
        self.since, self.steps, self.waited = self.clock(), 0, 0.0

    def next(self, batches: Iterator[Batch]) -> Batch:
        """Returns the next batch, and counts the step and the time spent waiting for the batch."""
        before = self.clock()
        batch = next(batches)
        self.waited += self.clock() - before
        self.steps += 1
        return batch

    @property
    def wall(self) -> dict[str, float]:
        """The wall time of the run in seconds, including earlier sessions."""
        return {"throughput/wall_seconds": self.clock() - self.began}

    def row(self) -> Row:
        """Returns the throughput of the interval, empty if it had no step. Call it when the last step has completed."""
        if self.steps == 0:  # the first step compiles and is not counted
            return {}
        seconds = max(self.clock() - self.since, 1e-9)
        return {
            "throughput/images_per_s": self.steps * self.batch_size / seconds,
            "throughput/mfu": self.steps * self.flops / seconds / self.peak,
            "throughput/data_wait": self.waited / seconds,
        }
