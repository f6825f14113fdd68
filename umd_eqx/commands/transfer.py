"""`experiments/evaluate.py --benchmark transfer`: few-shot probes of a trained network on other data sets."""

import dataclasses
import difflib
import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import tyro

from umd_eqx.commands.probe import ProbeSettings, recorded_config, recorded_settings, require_shots
from umd_eqx.commands.results import probed_network, require_place, save_result, settings_hash, show_in_report
from umd_eqx.commands.training import flag_value
from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.data.source import DataSource
from umd_eqx.data.transfer_sets import TRANSFER_SETS, MissingSet, TransferSet, find_set
from umd_eqx.eval import EvalContext, FewShot
from umd_eqx.eval.features import require_representation
from umd_eqx.eval.transfer import Kept, Planned, TransferResult, measure_transfer, plan
from umd_eqx.recipes.dump import dump
from umd_eqx.report import Table, Terminal, as_text
from umd_eqx.runs.pretrained import Pretrained, from_pretrained
from umd_eqx.runs.run import EVALUATION_KEY


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Probe the representation of a trained network on other data sets, with a few labelled images of each class."""

    settings: Annotated[ProbeSettings, tyro.conf.arg(name="")]
    benchmark: Literal["transfer"] = "transfer"
    """What to measure."""
    run: str | None = None
    """Run directory or exported safetensors file. None: the small weights included in the package."""
    tokenizer: str | None = None
    """Location of the tokenizer, for a network trained on latents. None: its location at training time."""
    data_dir: Annotated[str | None, tyro.conf.arg(name="data.dir", aliases=["--data-dir"])] = None
    """Folder that contains a folder of each data set: TFDS data or images. None: $TFDS_DATA_DIR."""
    sets: tuple[str, ...] = tuple(TRANSFER_SETS)
    """Data sets, by the names of their folders: of the published benchmark, or your own, with splits train and test."""
    number_of_shots: Annotated[tuple[int, ...], tyro.conf.arg(name="shots")] = (10, 100)
    """Numbers of training images per class. A class with fewer images is used whole, as in the reference."""
    max_broken: Annotated[int | None, tyro.conf.arg(name="data.max-broken")] = None
    """Number of images of each split that may be unreadable. They are left out. None: 1 % of the split, and at least
    10."""
    seed: int = 0
    """Random seed of the noise added to the images if --time is not 0."""
    batch_size: int | None = None
    """Number of images processed at once, over all devices. None: that of the run."""
    json: str | None = None
    """Write the result to this JSON file. The run directory keeps a copy in eval/."""


def measure_transfer_sets(words: list[str], types: Mapping[str, type] | None = None) -> int:
    """Runs the command and returns its exit code. `types` are user-defined classes that the run may contain.

    Settings default to those of the run's own probe, as for `--benchmark probe`, on all test images and without raw
    pixels. Sets that are missing or cannot be read are listed with the reason; the others are measured.

    **Raises:** `BadInput` naming the invalid flag, or `data.source.dir` if no set can be measured.
    """
    recorded = recorded_config(flag_value(words, "--run"))
    own, seed = recorded_settings(recorded)
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    changes = {"every": 1, "shots": 1, "test_images": None, "raw_pixels": False}
    default = Transfer(settings=ProbeSettings(**{**fields, **changes}), seed=seed)
    description = "Probe the representation of a trained network on the data sets of the transfer benchmark."
    command = tyro.cli(Transfer, default=default, args=words, description=description)
    _validate(command)
    root = _root(command)
    sets = _sets(command, root)
    own_types = (types or {}).values()
    options = {"weights": command.settings.weights, "tokenizer": command.tokenizer}
    source = from_pretrained(command.run, **options, recorded=recorded, types=own_types)
    require_representation(source.model, "run")
    began = time.perf_counter()
    results, batch_size = _measured(command, source, sets, root)
    result = _record(command, source, results) | {"batch_size": batch_size, "seconds": time.perf_counter() - began}
    print(f"\n{as_text(result['table'])}")
    if all(each.problem is not None for each in results):
        raise BadInput("data.source.dir", *_nothing_measured(results, root))
    settled = {name: result[name] for name in ("settings", "shots", "seed", "weights", "results", "tokenizer")}
    name = f"transfer-{source.weights}-step{source.step}-{settings_hash(settled)}"
    measured = save_result(result, name, command.run, command.json, own_types)
    show_in_report(command.run, own_types, measured=measured, recorded=recorded, environment=source.environment)
    return 0


def _validate(command: Transfer) -> None:
    command.settings.validate(field="")
    require_shots(command.number_of_shots)
    if command.batch_size is not None and command.batch_size < 1:
        raise BadInput("batch_size", f"{command.batch_size} is not a valid batch size", "Use 1 or more")
    if command.max_broken is not None and command.max_broken < 0:
        raise BadInput("data.max_broken", f"{command.max_broken} is negative", "Use 0 or more")
    if not 0 <= command.seed < 2**32:
        raise BadInput("seed", f"{command.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
    require_place(command.run, command.json)


def _root(command: Transfer) -> str:
    root = command.data_dir or os.environ.get("TFDS_DATA_DIR")
    if not root:
        raise BadInput("data.source.dir", "the folder of the data sets is missing", "Give it, or set $TFDS_DATA_DIR")
    if "://" not in root and not os.path.isdir(os.path.expanduser(root)):
        problem = f"{root} is not a folder" if os.path.exists(root) else f"there is no folder {root}"
        raise BadInput("data.source.dir", problem, "Give the folder that contains the data sets")
    return root


def _sets(command: Transfer, root: str) -> list[TransferSet]:
    """Returns the requested sets. Raises `BadInput` for a name that is neither known nor in the folder."""
    sets = [TRANSFER_SETS.get(name, TransferSet(name)) for name in dict.fromkeys(command.sets)]
    if not sets:
        raise BadInput("sets", "no data set is given", f"Choose among {_listed(TRANSFER_SETS)}")
    for each in sets:
        if each.name in TRANSFER_SETS:
            continue
        try:
            find_set(each, root)
        except MissingSet as error:
            close = difflib.get_close_matches(each.name, TRANSFER_SETS, n=1)
            meant = f"Did you mean {close[0]}? " if close else ""
            raise BadInput("sets", error.problem, f"{meant}Choose among {_listed(TRANSFER_SETS)}") from error
        except BadInput:
            continue  # it is there, but cannot be read: reported with the results
    return sets


def _measured(
    command: Transfer, source: Pretrained, sets: Sequence[TransferSet], root: str
) -> tuple[list[TransferResult], int]:
    """Returns a result for each set, and the batch size."""
    probe, shots = command.settings, tuple(dict.fromkeys(command.number_of_shots))
    print(f"{source.describe()}; {_listed(shots)} shots, {probe.seeds} draws, images of {source.data.size} px")
    mesh = make_mesh()
    size = round_up_to_devices(command.batch_size or source.data.eval_batch_size, mesh)
    key = jax.random.fold_in(jax.random.key(command.seed), EVALUATION_KEY)

    def context(train: DataSource, test: DataSource) -> EvalContext:
        return EvalContext(
            *(train, test, source.path, source.data.size, size, mesh),
            tokenizer=source.tokenizer,
            threads=source.data.workers,
        )

    given = (root, source.spec.channels, probe, shots, context)
    plans = [plan(each, *given, max_broken=command.max_broken) for each in sets]
    for each in plans:
        if isinstance(each, TransferResult) and each.problem is not None:
            print(f"{each.name} is left out: {each.problem.problem}. {each.problem.hint}")
    total, done = sum(each.images for each in plans if isinstance(each, Planned)), 0
    origins = {each.shots_from for each in sets}
    kept: Kept = {}
    results = []
    with Terminal(max(total, 1), work="probing", unit="image") as terminal:
        for each in plans:
            if isinstance(each, TransferResult):
                results.append(each)
                continue
            terminal.phase(f"probing {each.set.name}")
            shared = kept if each.opened.origin in origins else None
            report = functools.partial(_progress, terminal, done)
            found = measure_transfer(source.model, each, probe, key, kept=shared, progress=report)
            done += each.images
            terminal.update(done, {})
            terminal.print(_line(found, _headline(probe)))
            results.append(found)
    return results, size


def _progress(terminal: Terminal, before: int, done: int) -> None:
    terminal.update(before + done, {})


def _headline(probe: FewShot) -> str:
    return probe.headline or probe.features[0]


def _line(result: TransferResult, features: str) -> str:
    if result.problem is not None:
        return f"{result.name} is left out: {result.problem.problem}. {result.problem.hint}"
    numbers = [f"{shots} shots {each[features].text()}" for shots, each in result.scores.items()]
    return f"{result.name}: {', '.join(numbers)}"


def _table(command: Transfer, source: Pretrained, results: Sequence[TransferResult]) -> Table:
    """Returns the table of the accuracies, with the reason where there are none."""
    probe, shots = command.settings, tuple(dict.fromkeys(command.number_of_shots))
    measured = next((each.scores[shots[0]] for each in results if each.problem is None), {})
    kinds = sorted(measured, key=lambda name: name != _headline(probe))
    columns = ["data set", *(f"{kind.replace('_', ' ')}, {n} shots" for kind in kinds for n in shots)]
    rows, notes = [], []
    for each in results:
        cells = [each.scores[n][kind].text() if each.problem is None else "-" for kind in kinds for n in shots]
        rows.append([each.name, *cells])
        if each.problem is not None:
            notes.append(f"{each.name}: not measured, {each.problem.problem}. {each.problem.hint}")
        few = [f"{least} of {n} shots" for n, least in each.drawn.items() if least < n]
        said = [*each.notes, *([f"as few as {' and '.join(few)} in a class"] if few else [])]
        if said:
            notes.append(f"{each.name}: {'; '.join(said)}")
    spread = " ± standard deviation" if probe.seeds > 1 else ""
    l2 = "chosen by leave-one-out" if probe.l2 is None else f"{probe.l2:g}"
    title = (
        f"Transfer: top-1 in percent of a ridge probe, mean{spread} over {probe.seeds} draws "
        f"(penalty {l2}, {source.weights} weights of step {source.step:,})"
    )
    return Table(title=title, columns=columns, rows=rows, notes=notes)


def _record(command: Transfer, source: Pretrained, results: Sequence[TransferResult]) -> dict[str, Any]:
    left_out = ("type", "every", "shots")
    settings = {name: value for name, value in dump(command.settings).items() if name not in left_out}
    settings["weights"] = source.weights  # an export holds only one kind of weights, regardless of the flag
    return {
        "benchmark": "transfer",
        "metrics": {
            f"{each.name}/{shots}-shot/{kind}": scores.mean
            for each in results
            for shots, kinds in each.scores.items()
            for kind, scores in kinds.items()
        },
        "results": [each.to_json() for each in results],
        "settings": settings,
        "shots": list(dict.fromkeys(command.number_of_shots)),
        "seed": command.seed,
        "size": source.data.size,
        **probed_network(source),
        "table": _table(command, source, results),
    }


def _nothing_measured(results: Sequence[TransferResult], root: str) -> tuple[str, str]:
    problems = [each.problem for each in results if each.problem is not None]
    if all(isinstance(problem, MissingSet) for problem in problems):
        return f"{root} contains none of the data sets ({_listed(each.name for each in results)})", problems[0].hint
    first = next(problem for problem in problems if not isinstance(problem, MissingSet))
    return f"no data set could be measured; the first problem: {first.problem}", first.hint


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) or "none"
