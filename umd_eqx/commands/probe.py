"""`experiments/evaluate.py --benchmark probe`: the few-shot probe of a trained network, with all settings recorded."""

import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from umd_eqx.commands.results import (
    open_data,
    probed_data,
    probed_network,
    require_place,
    save_result,
    settings_hash,
    show_in_report,
)
from umd_eqx.commands.training import flag_value
from umd_eqx.core.errors import BadInput
from umd_eqx.core.json_files import read_json
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.eval import EvalContext, FewShot
from umd_eqx.eval.features import require_representation
from umd_eqx.eval.fewshot import ProbeScores, all_drawn, score_rows
from umd_eqx.models import AbstractModel
from umd_eqx.recipes.dump import dump
from umd_eqx.report import Table, Terminal, as_text
from umd_eqx.runs.derived import recorded_probe
from umd_eqx.runs.pretrained import Pretrained, from_pretrained
from umd_eqx.runs.run import EVALUATION_KEY


@dataclasses.dataclass(frozen=True)
class ProbeSettings(FewShot):
    """Settings of the probe. The command measures once, for several numbers of shots."""

    every: tyro.conf.Suppress[int] = 1
    shots: tyro.conf.Suppress[int] = 1


@dataclasses.dataclass(frozen=True)
class Probe:
    """Probe the representation of a trained network with a few labelled images of each class."""

    settings: Annotated[ProbeSettings, tyro.conf.arg(name="")]
    number_of_shots: Annotated[tuple[int, ...], tyro.conf.arg(name="shots")]
    """Numbers of training images per class. A class with fewer images is used whole, as in the reference."""
    benchmark: Literal["probe"] = "probe"
    """What to measure."""
    run: str | None = None
    """Run directory or exported safetensors file. None: the small weights included in the package."""
    tokenizer: str | None = None
    """Location of the tokenizer, for a network trained on latents. None: its location at training time."""
    data_dir: Annotated[str | None, tyro.conf.arg(name="data.dir", aliases=["--data-dir"])] = None
    """Folder of the images. None: that of the run, $TFDS_DATA_DIR, or the images included in the package."""
    seed: int = 0
    """Random seed of the noise added to the images if --time is not 0."""
    batch_size: int | None = None
    """Number of images processed at once, over all devices. None: that of the run."""
    json: str | None = None
    """Write the result to this JSON file. The run directory keeps a copy in eval/."""


def measure_probe(words: list[str], types: Mapping[str, type] | None = None) -> int:
    """Runs the command and returns its exit code. `types` are user-defined classes that the run may contain.

    Settings default to those of the run's own probe or, for an export, which does not record them, to those of
    `FewShot`; a run's probe with more than 10 shots is repeated with 10. With the run's own settings and seed, the
    results equal those the run measured at its last checkpoint.

    **Raises:** `BadInput` naming the invalid flag.
    """
    recorded = recorded_config(flag_value(words, "--run"))
    settings, seed = recorded_settings(recorded)
    shots = (10, settings.shots) if settings.shots > 10 else (settings.shots,)
    default = Probe(settings, shots, seed=seed)
    description = "Probe the representation of a trained network."
    command = tyro.cli(Probe, default=default, args=words, description=description)
    command.settings.validate(field="")
    require_shots(command.number_of_shots)
    if command.batch_size is not None and command.batch_size < 1:
        raise BadInput("batch_size", f"{command.batch_size} is not a valid batch size", "Use 1 or more")
    if not 0 <= command.seed < 2**32:
        raise BadInput("seed", f"{command.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
    require_place(command.run, command.json)
    options = {"weights": command.settings.weights, "tokenizer": command.tokenizer}
    source = from_pretrained(command.run, **options, recorded=recorded, types=(types or {}).values())
    require_representation(source.model, "run")
    result = _measured(command, source)
    settled = {name: result[name] for name in ("settings", "seed", "weights", "data", "tokenizer")}
    if len(result["shots"]) > 1:
        settled["shots"] = result["shots"]
    name, own_types = f"probe-{source.weights}-step{source.step}-{settings_hash(settled)}", (types or {}).values()
    measured = save_result(result, name, command.run, command.json, own_types)
    show_in_report(command.run, own_types, measured=measured, recorded=recorded, environment=source.environment)
    return 0


def require_shots(shots: Sequence[int]) -> None:
    """Raises `BadInput` naming `shots` unless there is one or more, all at least 1."""
    if not shots or min(shots) < 1:
        raise BadInput("shots", f"{', '.join(map(str, shots)) or 'none'} is not valid", "Use numbers of 1 or more")


def recorded_config(run: str | None) -> dict[str, Any] | None:
    """Returns the content of a run's `config.json`; None if it cannot be read, which `from_pretrained` reports."""
    try:
        return None if run is None else read_json(Path(run) / "config.json")
    except (OSError, ValueError):
        return None


def recorded_settings(recorded: Mapping[str, Any] | None) -> tuple[ProbeSettings, int]:
    """Returns the settings of a run's own probe and its seed, or the defaults if the run does not record them."""
    try:
        config = {} if recorded is None else recorded["config"]
        own, seed = recorded_probe(config), config.get("seed", 0)
    except (ValueError, KeyError, TypeError, AttributeError):  # `from_pretrained` reports the error
        own, seed = None, 0
    own = own or FewShot()
    fields: dict[str, Any] = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    return ProbeSettings(**{**fields, "every": 1}), seed


def _measured(command: Probe, source: Pretrained) -> dict[str, Any]:
    train, test = open_data(source, command.data_dir)
    if not train.spec.num_classes:
        raise BadInput("data.source.dir", f"{train.spec.name} has no labels to probe for", "Give images with labels")
    probe, shots = command.settings, tuple(dict.fromkeys(command.number_of_shots))
    settings = {name: value for name, value in dump(probe).items() if name not in ("type", "every")}
    settings |= {"shots": shots[-1], "weights": source.weights}  # an export has only one kind, regardless of the flag
    shown = settings | {"shots": " and ".join(map(str, shots))}
    print(f"{source.describe()}; probed with {', '.join(f'{name} {value}' for name, value in shown.items())}")
    mesh, began = make_mesh(), time.perf_counter()
    size = round_up_to_devices(command.batch_size or source.data.eval_batch_size, mesh)
    options = {"tokenizer": source.tokenizer, "threads": source.data.workers}
    context = EvalContext(train, test, source.path, source.data.size, size, mesh, **options)
    scores = _scores(probe, shots, context, source.model, command.seed)
    *further, last = shots
    metrics = {f"{name}/{k}": v for name, each in scores[last].items() for k, v in each.scalars().items()}
    for n in further:
        metrics |= {f"{n}-shot/{name}/{k}": v for name, each in scores[n].items() for k, v in each.scalars().items()}
    table = _table(command, source, scores)
    print(f"\n{as_text(table)}")
    return {
        "benchmark": "probe",
        "metrics": metrics,
        "scores": score_rows(scores),
        "shots": list(shots),
        "settings": settings,
        "seed": command.seed,
        **probed_network(source),
        "data": probed_data(source, train, test),
        "batch_size": size,
        "table": table,
        "seconds": time.perf_counter() - began,
    }


def _scores(
    probe: FewShot, shots: tuple[int, ...], context: EvalContext, model: AbstractModel, seed: int
) -> dict[int, dict[str, ProbeScores]]:
    draws, indices = probe.draw(context, shots), probe.test_indices(context)
    drawn = all_drawn(draws)
    key = jax.random.fold_in(jax.random.key(seed), EVALUATION_KEY)
    with Terminal(len(drawn) + len(indices), work="probing", unit="image") as terminal:
        terminal.phase("computing features")
        train = probe.features_of(model, context, "train", drawn, key, progress=lambda done: terminal.update(done, {}))
        test = probe.features_of(
            model, context, "test", indices, key, progress=lambda done: terminal.update(len(drawn) + done, {})
        )
        terminal.phase("fitting the probes")
        return probe.scores(train, test, draws, context.train.spec.num_classes)


def _table(command: Probe, source: Pretrained, scores: Mapping[int, Mapping[str, ProbeScores]]) -> Table:
    last = [*scores][-1]
    rows = [
        [name.replace("_", " "), *(scores[n][name].text() for n in scores), f"{each.knn:.1f}"]
        for name, each in scores[last].items()
    ]
    return Table(
        title=f"Probe on {source.spec.name}: top-1 in percent ({source.weights} weights of step {source.step:,})",
        columns=["features", *(f"{n} shots" for n in scores), f"{command.settings.knn} neighbours"],
        rows=rows,
        notes=[
            "A linear probe on all labelled images: python experiments/linear_probe.py --run "
            f"{shlex.quote(command.run or 'RUN')}"
        ],
    )
