"""One run from its configuration to its report: resumes, trains, measures, saves, and can be stopped at any time."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

import jax
from etils import epath

from umd_eqx.checkpoint import Checkpoints, require_space
from umd_eqx.classifier_training import lacks_classifier, write_classifier
from umd_eqx.config import Built, Config, build
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.latents import ChooseView, LatentSource
from umd_eqx.data.loader import training_batches
from umd_eqx.data.source import DataSource
from umd_eqx.dump import differences, dump, flatten, run_identity
from umd_eqx.errors import BadInput
from umd_eqx.eval import AbstractEvaluator, EvalContext
from umd_eqx.flops import peak_flops
from umd_eqx.latents import as_latents
from umd_eqx.loop import Evaluations, Guard, Meter, Sinks, fit
from umd_eqx.models.tokenizer import AbstractTokenizer
from umd_eqx.models.variants import num_parameters
from umd_eqx.presets import PRETRAIN
from umd_eqx.pretrained import first_weights
from umd_eqx.remeasure import add_measurement, not_yet_measured
from umd_eqx.report import MetricsFile, Terminal, Wandb, read_metrics, results_table, write_webpage
from umd_eqx.report.rundir import RunDirectory
from umd_eqx.sharding import batch_sharding, place, replicated
from umd_eqx.signals import EXIT_STOPPED, Stop
from umd_eqx.tokenizer_training import finish, is_written
from umd_eqx.tokenizers import load_tokenizer, resolve, with_latents_of
from umd_eqx.train import TrainState
from umd_eqx.types import Batch
from umd_eqx.workspace import claim, default_run_dir, environment, own, record, require_same_format, save_json

EVALUATION_KEY = 2**32 - 1
"""Folded into the seed for evaluations: no training step has this number."""

LATENT_KEY = 2**32 - 2
"""The same for drawing latents from what a tokenizer says of an image."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: where it lies, at which step, and the signal that stopped it, if one did."""

    run_dir: Path
    step: int
    stopped_by: str | None

    @property
    def exit_code(self) -> int:
        """0, or 75 where a signal stopped it."""
        return 0 if self.stopped_by is None else EXIT_STOPPED


def run(
    config: Config,
    *,
    run_dir: str | Path | None = None,
    preset: str | None = None,
    recipe: Config | None = None,
    limit_steps: int | None = None,
    types: Iterable[type] = (),
) -> Outcome:
    """Trains and measures as `config` says; in a directory with an unfinished run of the same kind, goes on with it.

    A run of a tokenizer or of the embedded classifier ends in writing it. A run that is finished already is measured
    again where `config` has evaluators that were changed since (`remeasure.not_yet_measured`).

    **Arguments:**

    - `config`: from a preset, changed with `dataclasses.replace`.
    - `run_dir`: where everything is written; if not given, `runs/<preset>` with what was changed of it.
    - `preset`, `recipe`: what the configuration was made from, for the reader of the results and the name of the
      directory. If not given, the published preset that it has most in common with.
    - `limit_steps`: stop after this step, measure and report. The learning rate goes by the whole length all the same.
    - `types`: the reader's own classes, of which the run that the first weights come from may be made.

    Raises `BadInput` for whatever the caller can mend, and where the run was started as several processes.
    """
    if (processes := jax.process_count()) > 1:
        problem = f"this run was started as {processes} processes, and only one is supported so far"
        raise BadInput("jax.distributed", problem, "Start one process that has all of its machine's devices")
    asked = preset
    if preset is None or recipe is None:
        preset, recipe = nearest_preset(config) if preset is None else (preset, config)
    if "://" in str(run_dir):
        raise BadInput("--run-dir", f"{run_dir} is not a folder of this machine", "Give a local or a mounted folder")
    config = resolve(config)
    recipe = with_latents_of(recipe, config)
    directory = default_run_dir(preset, config, recipe) if run_dir is None else Path(run_dir)
    built = build(config, config.data.describe())
    built.abstract_state()  # raises what is wrong with the network before anything is written
    stop_at = built.steps(limit_steps)
    with own(directory):
        if claim(directory, config, asked):
            record(directory, config, preset, recipe)
        return _Run(built, directory, preset, recipe, stop_at, tuple(types)).start()


def nearest_preset(config: Config) -> tuple[str, Config]:
    """The preset of which least was changed to make this configuration: its name and recipe."""
    recipes = {name: preset() for name, preset in PRETRAIN.items()}

    def distance(name: str) -> tuple[int, int]:
        recipe = recipes[name]
        made = differences(run_identity(recipe), run_identity(config))
        return len(made), len(differences(flatten(dump(recipe)), flatten(dump(config))))  # tokenizers tell some apart

    name = min(recipes, key=distance)
    return name, recipes[name]


class _Run:
    """The wiring of one run; what it does is in `start`, from top to bottom."""

    def __init__(self, built: Built, directory: Path, preset: str, recipe: Config, stop_at: int, types: Iterable[type]):
        self.built, self.config, self.parts = built, built.config, built.parts
        self.directory, self.preset, self.recipe, self.stop_at, self.types = directory, preset, recipe, stop_at, types
        self.metrics_path = directory / "metrics.jsonl"

    def start(self) -> Outcome:
        folder = epath.Path(self.directory.absolute() / "checkpoints")
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(folder, keep=self.config.checkpoint.keep)
            stack.callback(checkpoints.close)
            newest = max(checkpoints.steps(), default=0)
            if newest >= self.stop_at:
                return self._already_done(newest, checkpoints)
            if newest:
                require_same_format(self.directory)
            record(self.directory, self.config, self.preset, self.recipe)  # what may differ may have changed
            require_space(epath.Path(self.directory), self.built.abstract_state(), self.config.checkpoint.keep)
            terminal = stack.enter_context(Terminal(self.stop_at, start=newest))
            stop = stack.enter_context(Stop(terminal.warn))
            train, test = self.config.data.open()
            self.tokenizer = self._tokenizer()
            first, state = self._restore(checkpoints, terminal)
            metrics = stack.enter_context(MetricsFile.open(self.metrics_path, first or None))
            meter = self._describe(state)
            terminal.say(self._headline(state))
            sinks = Sinks(self.directory, terminal, metrics, self._wandb(terminal))
            stack.push(lambda kind, *_: sinks.close(failed=kind is not None))
            batches = stack.enter_context(contextlib.closing(self._batches(train, first)))
            step = fit(
                self.parts,
                state,
                range(first, self.stop_at),
                batches,
                log_every=self.config.log.every,
                checkpoint_every=self.config.checkpoint.every,
                evaluations=self._evaluations(train, test, terminal, self.config.eval),
                checkpoints=checkpoints,
                sinks=sinks,
                meter=meter,
                guard=Guard(self.config.max_skipped, terminal.warn),
                stop=stop,
            )
            for name, found in (("train", train.broken), ("test", test.broken)):
                if found:
                    some = ", ".join(map(str, sorted(found)[:10]))
                    terminal.warn(f"{len(found)} {name} images could not be read and were skipped: {some}")
            terminal.phase("saving", step)
            checkpoints.wait()
            write_webpage(self.directory)
        if step == self.stop_at:
            self._write_trained(step)
        return self._goodbye(step, stop.asked if step < self.stop_at else None)

    def _restore(self, checkpoints: Checkpoints, terminal: Terminal) -> tuple[int, TrainState]:
        everywhere = replicated(self.parts.mesh)
        found = checkpoints.restore(self.built.abstract_state(), everywhere, terminal.warn)
        if found is None:
            start = self.config.start
            source = None if start is None else first_weights(start, terminal.say, self.types)
            return 0, place(self.built.init(source), everywhere)
        terminal.say(f"resuming {self.directory} at step {found[0]} of {self.built.total}")
        return found

    def _tokenizer(self) -> AbstractTokenizer | None:
        if self.config.tokenizer is None:
            return None
        return place(load_tokenizer(self.config.tokenizer).tokenizer, replicated(self.parts.mesh))

    def _batches(self, train: DataSource, first: int) -> Generator[Batch, None, None]:
        data, stored = self.config.data, self.config.data.latents
        batches = training_batches(
            train if stored is None else SkipBroken(LatentSource(stored), data.max_broken, split=stored),
            data.transform() if stored is None else ChooseView(),
            batch_size=data.batch_size,
            seed=self.config.seed,
            start_step=first,
            sharding=batch_sharding(self.parts.mesh),
            threads=data.workers,
        )
        if self.tokenizer is None:
            return batches
        key = jax.random.fold_in(jax.random.key(self.config.seed), LATENT_KEY)
        return as_latents(batches, self.tokenizer, key, first, mesh=self.parts.mesh, stored=stored is not None)

    def _evaluations(
        self, train: DataSource, test: DataSource, terminal: Terminal, evaluators: Mapping[str, AbstractEvaluator]
    ) -> Evaluations:
        data = self.config.data
        mesh, path = self.parts.mesh, self.parts.path
        context = EvalContext(
            *(train, test, path, data.size, data.eval_batch_size, mesh),
            tokenizer=self.tokenizer,
            objective=self.config.objective,
            threads=data.workers,
            say=terminal.say,
            phase=terminal.phase,
        )
        names = {name for row in read_metrics(self.metrics_path) for name in row}
        beaten = {name.split("/")[2] for name in names if name.startswith("eval/untrained/")}
        return Evaluations(
            {name: (evaluator, evaluator.build(context)) for name, evaluator in evaluators.items()},
            jax.random.fold_in(jax.random.key(self.config.seed), EVALUATION_KEY),
            last=self.stop_at,
            # Weights that something was trained for already are no line to beat.
            untrained=(lambda: self.built.init().model) if self.config.start is None else None,
            beaten=beaten,
        )

    def _describe(self, state: TrainState) -> Meter:
        flops = self.built.step_flops()
        peak, source = peak_flops()
        facts = {
            "steps": self.built.total,
            "parameters": num_parameters(state.model),
            "flops_per_step": flops,
            "peak_flops_per_device": peak,
            "peak_from": source,
            "data": self.built.spec._asdict(),
        }
        save_json(self.directory / "environment.json", environment(self.preset, facts))
        walls = (row.get("throughput/wall_seconds", 0.0) for row in read_metrics(self.metrics_path))
        return Meter(self.config.data.batch_size, flops, peak * self.parts.mesh.size, wall=max(walls, default=0.0))

    def _headline(self, state: TrainState) -> str:
        data, spec, mesh = self.config.data, self.built.spec, self.parts.mesh
        network = f"{self.config.model.title} with {num_parameters(state.model):,} parameters"
        return (
            f"{self.directory}: {self.preset}, {network}; "
            f"{spec.name}, {spec.num_train:,} images at {data.size} px, {data.batch_size} a step; "
            f"{mesh.size} x {jax.devices()[0].device_kind}"
        )

    def _wandb(self, terminal: Terminal) -> Wandb | None:
        name = self.directory.name
        run_id = hashlib.sha256(str(self.directory.absolute()).encode()).hexdigest()[:16]
        return Wandb.maybe(self.config.log.wandb, self.directory, name, dump(self.config), run_id, say=terminal.say)

    def _already_done(self, step: int, checkpoints: Checkpoints) -> Outcome:
        print(f"{self.directory} is finished: it is at step {step}, and {self.stop_at} was asked for. Its results:\n")
        changed = not_yet_measured(self.directory, self.config.eval, read_metrics(self.metrics_path), step)
        if changed:
            self._measure(changed, checkpoints)
        self._write_trained(step)
        print(results_table(read_metrics(self.metrics_path), RunDirectory.read(self.directory).headlines()))
        print(f"\nreport: {write_webpage(self.directory)}")
        return Outcome(self.directory, step, None)

    def _measure(self, evaluators: Mapping[str, AbstractEvaluator], checkpoints: Checkpoints) -> None:
        """Measures the newest checkpoint of a finished run, and adds its numbers to those of the training."""
        with Terminal(self.stop_at, start=self.stop_at) as terminal:
            terminal.say(f"measuring what was asked for otherwise: {', '.join(evaluators)}")
            found = checkpoints.restore(self.built.abstract_state(), replicated(self.parts.mesh), terminal.warn)
            assert found is not None, "a finished run has a checkpoint"
            step, state = found
            train, test = self.config.data.open()
            self.tokenizer = self._tokenizer()
            evaluations = self._evaluations(train, test, terminal, evaluators)
            row, pictures = evaluations.measure([*evaluators], state, functools.partial(terminal.phase, step=step))
            add_measurement(self.directory, step, row, pictures, self._wandb(terminal))

    def _write_trained(self, step: int) -> None:
        """Writes the tokenizer or the classifier of a run that trained one, if that of this step is not there yet."""
        trained = isinstance(self.built.abstract_state().model, AbstractTokenizer)
        if trained and not is_written(self.directory, step):
            print(f"tokenizer: {finish(self.config, self.directory)}")
        if lacks_classifier(self.built, self.directory, step):
            print(f"classifier: {write_classifier(self.config, self.directory)}")

    def _goodbye(self, step: int, stopped_by: str | None) -> Outcome:
        if stopped_by is not None:
            print(f"stopped by {stopped_by} at step {step} of {self.built.total}, saved. The same command goes on")
        else:
            rows = read_metrics(self.metrics_path)
            print(f"\n{results_table(rows, RunDirectory.read(self.directory).headlines())}\n")
            if skipped := int((rows[-1] if rows else {}).get("train/skipped_total") or 0):
                print(f"{skipped} of {step} steps were skipped: their loss or gradient was not finite")
            print(f"report: {self.directory / 'report.html'}")
        return Outcome(self.directory, step, stopped_by)
