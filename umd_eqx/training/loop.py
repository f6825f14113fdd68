"""The training loop: steps, evaluations, metrics and checkpoints, independent of the training method."""

import contextlib
import functools
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
from umd_eqx.training.meter import Meter
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


class _Results:
    """What is kept of the steps of a run: their rows, the results of their evaluations, and their states."""

    def __init__(
        self,
        evaluations: Evaluations,
        checkpoints: Checkpoints,
        sinks: Sinks,
        meter: Meter,
        guard: Guard,
        stop: Stop,
    ):
        self.evaluations, self.checkpoints, self.sinks = evaluations, checkpoints, sinks
        self.meter, self.guard, self.stop = meter, guard, stop
        self.pending = PendingRow(sinks.run.path)

    def resume(self, step: int, state: TrainState) -> None:
        """Makes the evaluations of a step that an earlier session was stopped in."""
        if (row := self.pending.of(step)) is None:
            return
        due, terminal = self.evaluations.due(step), self.sinks.terminal
        missing = bool(due) and not self.sinks.has_row(step)
        if self.pending.is_damaged():
            lost = f": the row of step {step} will lack its training metrics" if missing else ""
            terminal.warn(f"pending.json is damaged{lost}")
        if missing:
            self.write(step, state, row, due)
        self.pending.clear()

    def write(self, step: int, state: TrainState, row: Row, due: list[str]) -> None:
        """Makes the evaluations that are due, and writes the row of a step with their results."""
        terminal = self.sinks.terminal
        with self.stop.unsaved_nothing(step, self.checkpoints.wait_sealed) if due else contextlib.nullcontext():
            measured, pictures = self.evaluations.measure(due, state, functools.partial(terminal.phase, step=step))
        self.sinks.write(step, row | measured | self.meter.wall, pictures)
        self.pending.clear()
        terminal.phase("training")

    def save(self, step: int, state: TrainState) -> None:
        """Starts the save of a state, after the last checks of its step."""
        self.guard.settle()
        self.sinks.require_held()
        require_equal_replicas(step, eqx.filter(state.model, eqx.is_array))
        self.checkpoints.save(step, state)


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
    done, agreed = steps.start, StopStep()
    results = _Results(evaluations, checkpoints, sinks, meter, guard, stop)

    def stopping() -> bool:
        return agreed.reached(done, stop.signal_name is not None)

    results.resume(done, state)
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
                results.pending.keep(done, row)
                results.save(done, state)
                if stopping():
                    break
            results.write(done, state, row, due)
            meter.restart()
        ending = stopping()
        if not due and (ending or done % checkpoint_every == 0 or done == steps.stop):
            results.save(done, state)
        if ending:
            break
    return done, state
