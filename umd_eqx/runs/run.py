"""A complete run, from configuration to report: resumes, trains, evaluates and saves, and can be stopped any time."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from umd_eqx.core.display import Display
from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of
from umd_eqx.core.peers import leave_together
from umd_eqx.core.processes import from_first, is_first
from umd_eqx.core.sharding import place, replicated
from umd_eqx.eval import AbstractEvaluator, EvalContext
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.recipes.build import Built, build
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump
from umd_eqx.report import MetricsFile, RunDirectory, Terminal, Wandb, results_table, write_report
from umd_eqx.runs.batches import run_batches
from umd_eqx.runs.describing import broken_images, facts_of, headline
from umd_eqx.runs.finishing import finish
from umd_eqx.runs.fitting import fit_to_data
from umd_eqx.runs.mirrored import claim_or_fetch, mirroring
from umd_eqx.runs.outcome import Outcome
from umd_eqx.runs.pretrained import initial_weights
from umd_eqx.runs.remeasure import add_measurement, as_recorded, not_yet_measured
from umd_eqx.runs.resolved import Resolved, resolve, with_latents_of
from umd_eqx.runs.workspace import default_run_dir, environment, nearest_preset, record, require_same_format
from umd_eqx.runs.writer import Writing, one_writer
from umd_eqx.training.checkpoint import Checkpoints
from umd_eqx.training.guards import DUMPS, Guard, MemoryWatch
from umd_eqx.training.loop import Evaluations, Sinks, fit
from umd_eqx.training.meter import Meter
from umd_eqx.training.pending import PendingRow
from umd_eqx.training.profile import Profile
from umd_eqx.training.signals import EXIT_STOPPED, Stop
from umd_eqx.training.space import require_space
from umd_eqx.training.step import TrainState

EVALUATION_KEY = 2**32 - 1
"""Folded into the seed for evaluations. No training step has this number."""


def run(
    config: Config | Resolved,
    *,
    run_dir: str | Path | None = None,
    preset: str | None = None,
    recipe: Config | None = None,
    limit_steps: int | None = None,
    types: Iterable[type] = (),
) -> Outcome:
    """Trains and evaluates a configuration; resumes if the directory holds an unfinished run of it.

    A finished run also writes the files that its model's configuration defines (`AbstractModelConfig.finish`).
    Calling this on a finished run repeats the evaluations whose settings have changed (`remeasure.not_yet_measured`).

    **Arguments:**

    - `config`: a preset, modified with `dataclasses.replace`, or a resolved configuration.
    - `run_dir`: the directory for all output. Default: `runs/<preset>`, with the overrides appended.
    - `preset`, `recipe`: the preset that `config` was derived from, for the report and the directory's name. Default:
      the closest preset.
    - `limit_steps`: stop after this step, then evaluate and report. The learning rate schedule keeps its full length.
    - `types`: user-defined classes that the run providing the initial weights may contain.

    Several processes (`umd_eqx.core.processes.join`) all call this with the same arguments and a shared `run_dir`; the
    first writes everything but its share of the checkpoints.

    **Raises:** `BadInput` for invalid input.
    """
    asked, given = preset, config.config if isinstance(config, Resolved) else config
    if preset is None or recipe is None:
        preset, recipe = nearest_preset(given) if preset is None else (preset, given)
    if "://" in str(run_dir):
        raise BadInput("run_dir", f"{run_dir} is not a folder on this machine", "Use a local or mounted folder")
    resolved = config if isinstance(config, Resolved) else resolve(config)
    directory = Path(run_dir or default_run_dir(preset, resolved.config, with_latents_of(recipe, resolved.config)))
    resolved = fit_to_data(resolved)
    config, recipe = resolved.config, with_latents_of(recipe, resolved.config)
    built = build(config, resolved.data.spec)
    built.abstract_state()  # raises errors in the network's configuration before anything is written
    stop_at = built.steps(limit_steps)
    config.profile.validate(stop_at)
    with one_writer(directory, lambda: claim_or_fetch(directory, config, asked)) as (writing, kept):
        if kept is None:
            kept = record(writing.directory, config, preset, recipe)
        return _Run(resolved, built, writing, kept, preset, recipe, stop_at, tuple(types)).start()


class _Run:
    """The parts of a run; `start` runs them from top to bottom."""

    def __init__(
        self,
        resolved: Resolved,
        built: Built,
        writing: Writing,
        kept: dict[str, Any],
        preset: str,
        recipe: Config,
        stop_at: int,
        types: tuple[type, ...],
    ):
        self.resolved, self.built, self.config, self.parts = resolved, built, built.config, built.parts
        self.writing, self.shared, self.directory = writing, writing.shared, writing.directory
        self.kept, self.preset, self.recipe = kept, preset, recipe
        self.stop_at, self.types = stop_at, types
        self.metrics_path = self.directory / "metrics.jsonl"

    def start(self) -> Outcome:
        folder = epath.Path(self.shared.absolute() / "checkpoints")
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(folder, keep=self.config.checkpoint.keep)
            stack.callback(checkpoints.close)
            newest = max(checkpoints.steps(), default=0)
            if newest >= self.stop_at and PendingRow(self.directory).of(newest) is None:
                return self._already_done(newest, checkpoints)
            if newest:
                require_same_format(self.directory, self.kept)
            self.kept = record(self.directory, self.config, self.preset, self.recipe)  # some settings may change
            from_first(self._require_space)
            terminal = stack.enter_context(Terminal(self.stop_at, start=newest))
            self.mirror = stack.enter_context(mirroring(self.config.checkpoint, self.directory, terminal.print))
            checkpoints.on_sealed = self.mirror.push
            stop = stack.enter_context(Stop(terminal.warn, self._leave))
            self.tokenizer = self._tokenizer()
            with stop.unsaved_nothing(newest):
                first, state = self._restore(checkpoints, terminal)
            self.mirror.push(first)
            metrics = stack.enter_context(MetricsFile.open(self.metrics_path, first or None))
            shown, meter = self._describe(state, metrics)
            terminal.print(headline(self.built, self.shared, self.preset, state))
            sinks = Sinks(shown, terminal, metrics, self._wandb(terminal), self.writing.require_held)
            stack.push(lambda kind, *_: sinks.close(failed=kind is not None))
            with stop.unsaved_nothing(first):
                evaluations = self._evaluations(terminal, self.config.eval, metrics.rows)
            given = run_batches(self.resolved, self.tokenizer, self.parts.mesh, first)
            batches = stack.enter_context(contextlib.closing(given))
            profile = stack.enter_context(Profile(self.config.profile, self.directory, first, terminal.print))
            step, state = fit(
                self.parts,
                state,
                range(first, self.stop_at),
                batches,
                log_every=self.config.log.every,
                checkpoint_every=self.config.checkpoint.every,
                evaluations=evaluations,
                checkpoints=checkpoints,
                sinks=sinks,
                meter=meter,
                guard=Guard(self.config.max_skipped, terminal.warn, self.directory / DUMPS),
                memory=MemoryWatch(self.stop_at, terminal.warn),
                stop=stop,
                profiled=profile.step,
            )
            for line in broken_images(self.resolved.data.splits):
                terminal.warn(line)
            terminal.phase("saving", step)
            checkpoints.wait()
            self.writing.require_held()
            with stop.unsaved_nothing(step, obeyed=int(stop.signal_name is not None)):
                write_report(shown)
            self.mirror.finish(hurry=step < self.stop_at)
        complete = step == self.stop_at and PendingRow(self.directory).of(step) is None
        if complete:
            self._finish(step, lambda: (step, state))
        return self._report_outcome(shown, step, None if complete else stop.signal_name or "a signal")

    def _require_space(self) -> None:
        # One more while it is copied to the mirror.
        keep = self.config.checkpoint.keep + (self.config.checkpoint.mirror is not None)
        require_space(epath.Path(self.shared), self.built.abstract_state(), keep)

    def _leave(self, signal_name: str, step: int) -> str:
        said = self._stopped(signal_name, step)
        self.mirror.finish(hurry=True)
        self.writing.release()
        leave_together(said, EXIT_STOPPED)
        return said

    def _stopped(self, signal_name: str, step: int) -> str:
        return f"stopped by {signal_name} at step {step} of {self.built.total}, saved. The same command resumes it"

    def _restore(self, checkpoints: Checkpoints, terminal: Terminal) -> tuple[int, TrainState]:
        like, layout = self.built.abstract_state(), self.parts.layout
        found = checkpoints.restore(like, layout.shardings(like), terminal.warn)
        source = self.resolved.take_source()
        if found is None:
            start = self.config.start
            weights = None if start is None else initial_weights(start, source, terminal.print, self.types)
            return 0, layout.place(self.built.init(weights))
        terminal.print(f"resuming {self.directory} at step {found[0]} of {self.built.total}")
        return found

    def _tokenizer(self) -> AbstractTokenizer | None:
        latents = self.resolved.latents
        return None if latents is None else place(latents.tokenizer, replicated(self.parts.mesh))

    def _evaluations(
        self, terminal: Terminal, evaluators: Mapping[str, AbstractEvaluator], rows: Sequence[Mapping[str, Any]]
    ) -> Evaluations:
        data, (train, test) = self.config.data, self.resolved.data.splits
        mesh, path = self.parts.mesh, self.parts.path
        context = EvalContext(
            *(train, test, path, data.size, data.eval_batch_size, mesh),
            tokenizer=self.tokenizer,
            objective=self.config.objective,
            threads=data.workers,
            notify=terminal.print,
            phase=terminal.phase,
        )
        names = {name for row in rows for name in row}
        measured = {name.split("/")[2] for name in names if name.startswith("eval/untrained/")}
        return Evaluations(
            {name: (evaluator, evaluator.build(context)) for name, evaluator in evaluators.items()},
            jax.random.fold_in(jax.random.key(self.config.seed), EVALUATION_KEY),
            last=self.stop_at,
            # Only freshly initialised weights serve as the untrained baseline.
            init_model=self.built.init_model if self.config.start is None else None,
            measured_untrained=measured,
        )

    def _describe(self, state: TrainState, metrics: MetricsFile) -> tuple[RunDirectory, Meter]:
        facts = facts_of(self.built, state)
        described = environment(self.preset, facts)
        save_json(self.directory / "environment.json", described)
        wall = max((row.get("throughput/wall_seconds", 0.0) for row in metrics.rows), default=0.0)
        peak = facts["peak_flops_per_device"] * self.parts.mesh.size
        meter = Meter(self.config.data.batch_size, facts["flops_per_step"], peak, wall=wall)
        return RunDirectory(self.directory, metrics.rows, self.kept, described, self._displays()), meter

    def _displays(self) -> dict[str, Display]:
        evaluators = as_recorded(self.kept, self.config.eval)
        return {name: evaluator.display(self.built.spec.name) for name, evaluator in evaluators.items()}

    def _wandb(self, terminal: Terminal) -> Wandb | None:
        if not is_first():
            return None
        run_id = sha256_of(str(self.directory.absolute()).encode())[:16]
        given = (self.config.log.wandb, self.directory, self.directory.name, dump(self.config), run_id)
        return Wandb.maybe(*given, notify=terminal.print)

    def _already_done(self, step: int, checkpoints: Checkpoints) -> Outcome:
        print(f"{self.directory} is finished: it is at step {step} ({self.stop_at} requested). Its results:\n")
        shown = RunDirectory.read(self.directory, self._displays(), config=self.kept)

        @functools.cache
        def trained() -> tuple[int, TrainState]:
            like = self.built.abstract_state()
            shardings = self.parts.layout.shardings(like)
            found = checkpoints.restore(like, shardings, lambda text: print(f"warning: {text}"))
            assert found is not None, "a finished run has a checkpoint"
            return found

        changed = not_yet_measured(shown, self.config.eval, step)
        if changed:
            shown = self._measure(changed, shown, trained)
        self._finish(step, trained)
        print(results_table(shown.rows, shown.headlines()))
        print(f"\nreport: {write_report(shown)}")
        with mirroring(self.config.checkpoint, self.directory, print) as mirror:
            mirror.push(step)
        return Outcome(self.shared, step, None, shown.last_values())

    def _finish(self, step: int, trained: Callable[[], tuple[int, TrainState]]) -> None:
        given = (self.built, self.directory, step, self.preset, self.recipe)
        finish(*given, lambda: self.resolved.data.splits, trained)

    def _measure(
        self,
        evaluators: Mapping[str, AbstractEvaluator],
        shown: RunDirectory,
        trained: Callable[[], tuple[int, TrainState]],
    ) -> RunDirectory:
        """Evaluates the newest checkpoint of a finished run, and adds the results to its metrics."""
        with Terminal(self.stop_at, start=self.stop_at) as terminal:
            terminal.print(f"repeating evaluations with changed settings: {', '.join(evaluators)}")
            self.tokenizer = self._tokenizer()
            evaluations = self._evaluations(terminal, evaluators, shown.rows)
            step, state = trained()
            row, pictures = evaluations.measure([*evaluators], state, functools.partial(terminal.phase, step=step))
            return add_measurement(shown, step, row, pictures, self._wandb(terminal))

    def _report_outcome(self, shown: RunDirectory, step: int, stopped_by: str | None) -> Outcome:
        if stopped_by is not None:
            print(self._stopped(stopped_by, step))
        else:
            print(f"\n{results_table(shown.rows, shown.headlines())}\n")
            if skipped := int(shown.last_values().get("train/skipped_total") or 0):
                print(f"{skipped} of {step} steps were skipped: their loss or gradient was not finite")
            print(f"report: {self.directory / 'report.html'}")
        return Outcome(self.shared, step, stopped_by, shown.last_values())
