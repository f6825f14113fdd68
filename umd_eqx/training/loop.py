"""The training loop: steps, evaluations, metrics and checkpoints, independent of the training method."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from umd_eqx.core.processes import StopStep, report_progress
from umd_eqx.core.types import Batch
from umd_eqx.eval import AbstractEvaluator, Evaluate
from umd_eqx.report import (
    MetricsFile,
    Pictures,
    RunDirectory,
    Terminal,
    Wandb,
    save_pictures,
    write_results,
    write_webpage,
)
from umd_eqx.training.checkpoint import Checkpoints
from umd_eqx.training.guards import Guard, MemoryWatch
from umd_eqx.training.pending import PendingRow
from umd_eqx.training.replicas import require_equal_replicas
from umd_eqx.training.signals import Stop
from umd_eqx.training.step import Parts, TrainState, train_step

Row = dict[str, float]


class Evaluations:
    """The evaluators of a run, by name, and the steps at which each is due.

    **Arguments:**

    - `evaluators`: each evaluator with the evaluation function built from it.
    - `key`: the key of every evaluation of a run. They use the same masks and noise, which makes them comparable.
    - `last`: the last step of the run, at which every evaluator is due.
    - `init_model`: returns the model with its initial weights; None if it is not to be evaluated.
    - `measured_untrained`: the names of evaluators that have already measured the initial weights.
    """

    def __init__(
        self,
        evaluators: Mapping[str, tuple[AbstractEvaluator, Evaluate]],
        key: PRNGKeyArray,
        *,
        last: int,
        init_model: Callable[[], eqx.Module] | None,
        measured_untrained: Iterable[str] = (),
    ):
        self.evaluators, self.key, self.last, self.init_model = evaluators, key, last, init_model
        self.measured_untrained = set(measured_untrained)

    def due(self, step: int) -> list[str]:
        """Returns the names of the evaluators that are due after `step` steps."""
        return [name for name, (e, _) in self.evaluators.items() if step % e.every == 0 or step == self.last]

    def measure(self, names: list[str], state: TrainState, phase: Callable[[str], None]) -> tuple[Row, dict]:
        """Returns scalars named `eval/<evaluator>/...` and image grids named `<evaluator>/...`.

        With the first evaluation of each evaluator with `measures_untrained`, its scalars of the initial weights are
        returned too, as `eval/untrained/<evaluator>/...`. They are not measured before training, which would delay it.
        """
        row: Row = {}
        pictures: dict[str, np.ndarray] = {}
        for name in names:
            evaluator, evaluate = self.evaluators[name]
            phase(f"evaluating {name}")
            report_progress(f"evaluating {name}")
            average = state.ema if evaluator.weights == "ema" else None
            report = evaluate(state.model if average is None else average, self.key)
            row |= {f"eval/{name}/{key}": value for key, value in report.scalars.items()}
            pictures |= {f"{name}/{key}": image for key, image in report.images.items()}
        baselines = {name for name in names if self.evaluators[name][0].measures_untrained}
        missing = [name for name in names if name in baselines - self.measured_untrained]
        if missing and self.init_model is not None:
            row |= self._measure_untrained(self.init_model(), missing, phase)
        return row, pictures

    def _measure_untrained(self, model: eqx.Module, names: list[str], phase: Callable[[str], None]) -> Row:
        row = {}
        for name in names:
            phase(f"evaluating {name} of the untrained network")
            report_progress(f"evaluating {name} of the untrained network")
            evaluator, evaluate = self.evaluators[name]
            scalars = evaluate(model, self.key).scalars
            row |= {f"eval/untrained/{name}/{key}": v for key, v in scalars.items() if not evaluator.is_baseline(key)}
            self.measured_untrained.add(name)
        return row


class Sinks:
    """The outputs of a run: terminal, metrics file, web page, and optionally Weights & Biases.

    **Arguments:**

    - `run`: the run directory that the web page is made from, with the rows of `metrics`.
    - `require_held`: raises `BadInput` if the directory is no longer that of this process.
    """

    def __init__(
        self,
        run: RunDirectory,
        terminal: Terminal,
        metrics: MetricsFile,
        wandb: Wandb | None,
        require_held: Callable[[], None] = lambda: None,
    ):
        self.require_held = require_held
        self.run, self.terminal, self.metrics, self.wandb = run, terminal, metrics, wandb

    def write(self, step: int, row: Row, pictures: Pictures) -> None:
        """Writes the metrics and image grids of one step.

        After an evaluation, also writes `results.json`, and the web page if there are image grids.
        """
        self.require_held()
        self.metrics.append(step, row)
        self.terminal.update(step, row)
        if self.wandb is not None:
            self.wandb.log(step, row)
        if any(name.startswith("eval/") for name in row):
            write_results(self.run)
        if pictures:
            save_pictures(self.run.path, step, pictures)
            write_webpage(self.run)
            if self.wandb is not None:
                self.wandb.images(step, pictures)

    def has_row(self, step: int) -> bool:
        """Whether the row of a step is written."""
        return bool(self.metrics.rows) and self.metrics.rows[-1]["step"] >= step

    def close(self, failed: bool = False) -> None:
        """Finishes pending uploads; `failed` is whether the run ended with an error."""
        if self.wandb is not None:
            self.wandb.finish(failed)


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


def fit(
    parts: Parts,
    state: TrainState,
    steps: range,
    batches: Iterator[Batch],
    *,
    log_every: int,
    checkpoint_every: int,
    evaluations: Evaluations,
    checkpoints: Checkpoints,
    sinks: Sinks,
    meter: Meter,
    guard: Guard,
    memory: MemoryWatch,
    stop: Stop,
    profiled: Callable[[int], contextlib.AbstractContextManager[None]] = lambda step: contextlib.nullcontext(),
) -> tuple[int, TrainState]:
    """Trains from step `steps.start` to `steps.stop`, or until `stop` is set; returns the last step and the state.

    The metrics of a step are on the disk before its checkpoint is started. A run that is resumed from the checkpoint
    therefore has every row. That of a step with evaluations is kept as a `PendingRow` meanwhile, and the state is saved
    before it is evaluated: a run that is stopped or killed then resumes with the evaluations. With several processes,
    `stop` in one of them stops all of them, at a step that is the same in all (`StopStep`). `profiled` makes a context
    of each step.
    """
    sinks.terminal.phase("compiling")
    done, pending, agreed = steps.start, PendingRow(sinks.run.path), StopStep()

    def stopping() -> bool:
        return agreed.reached(done, stop.signal_name is not None)

    def write(row: Row, due: list[str]) -> None:
        with stop.unsaved_nothing(done, checkpoints.wait_sealed) if due else contextlib.nullcontext():
            measured, pictures = evaluations.measure(due, state, functools.partial(sinks.terminal.phase, step=done))
        sinks.write(done, row | measured | meter.wall, pictures)
        pending.clear()
        sinks.terminal.phase("training")

    def save() -> None:
        guard.settle()
        sinks.require_held()
        require_equal_replicas(done, eqx.filter(state.model, eqx.is_array))
        checkpoints.save(done, state)

    if (row := pending.of(done)) is not None:
        due = evaluations.due(done)
        if pending.is_damaged():
            lost = f": the row of step {done} will lack its training metrics" if due and not sinks.has_row(done) else ""
            sinks.terminal.warn(f"pending.json is damaged{lost}")
        if due and not sinks.has_row(done):
            write(row, due)
        pending.clear()
    for step in steps:
        first = step == steps.start
        checkpoints.require_saved()
        with stop.unsaved_nothing(step) if first else contextlib.nullcontext(), profiled(step):
            batch = meter.next(batches)
            state, metrics = train_step(parts, state, batch)
            if first:  # its time is mostly compilation
                jax.block_until_ready(metrics)
        done = step + 1
        guard.watch(done, metrics, batch)
        if first:
            sinks.terminal.phase("training")
            meter.restart()
        due = evaluations.due(done)
        if due or done % log_every == 0:
            row = {f"train/{name}": float(value) for name, value in metrics.items()} | meter.row() | memory.row(done)
            if due:
                sinks.require_held()
                pending.keep(done, row)
                save()
                if stopping():
                    break
            write(row, due)
            meter.restart()
        ending = stopping()
        if not due and (ending or done % checkpoint_every == 0 or done == steps.stop):
            save()
        if ending:
            break
    return done, state
