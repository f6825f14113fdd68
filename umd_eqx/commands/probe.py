"""`experiments/evaluate.py --benchmark probe`: the few-shot probe of a trained network, with all settings recorded."""

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from umd_eqx.commands.results import open_data, save_result, settings_hash
from umd_eqx.commands.training import flag_value
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.eval import EvalContext, FewShot
from umd_eqx.eval.features import require_representation
from umd_eqx.latents.store import source_hash
from umd_eqx.recipes.dump import dump
from umd_eqx.report import Terminal
from umd_eqx.runs.derived import recorded_probe
from umd_eqx.runs.pretrained import Pretrained, from_pretrained
from umd_eqx.runs.run import EVALUATION_KEY


@dataclasses.dataclass(frozen=True)
class ProbeSettings(FewShot):
    """Settings of the probe, without the interval: the command measures once."""

    every: tyro.conf.Suppress[int] = 1


@dataclasses.dataclass(frozen=True)
class Probe:
    """Probe the representation of a trained network with a few labelled images of each class."""

    settings: Annotated[ProbeSettings, tyro.conf.arg(name="")]
    benchmark: Literal["probe"] = "probe"
    """What to measure."""
    run: str | None = None
    """Run directory or exported safetensors file. None: the small weights included in the package."""
    tokenizer: str | None = None
    """Location of the tokenizer, for a network trained on latents. None: its location at training time."""
    data_dir: str | None = None
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
    `FewShot`. With the run's own settings and seed, the results equal those the run measured at its last checkpoint.

    **Raises:** `BadInput` naming the invalid flag.
    """
    recorded = recorded_config(flag_value(words, "--run"))
    settings, seed = recorded_settings(recorded)
    default = Probe(settings=settings, seed=seed)
    description = "Probe the representation of a trained network."
    command = tyro.cli(Probe, default=default, args=words, description=description)
    command.settings.validate(field="")
    if command.batch_size is not None and command.batch_size < 1:
        raise BadInput("batch_size", f"{command.batch_size} is not a valid batch size", "Use 1 or more")
    if not 0 <= command.seed < 2**32:
        raise BadInput("seed", f"{command.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
    if command.json is not None:
        require_writable("json", command.json)
    options = {"weights": command.settings.weights, "tokenizer": command.tokenizer}
    source = from_pretrained(command.run, **options, recorded=recorded, types=(types or {}).values())
    require_representation(source.model, "run")
    result = _measured(command, source)
    settled = {name: result[name] for name in ("settings", "seed", "weights", "data", "tokenizer")}
    name = f"probe-{source.weights}-step{source.step}-{settings_hash(settled)}"
    save_result(result, name, command.run, command.json, (types or {}).values())
    return 0


def recorded_config(run: str | None) -> dict[str, Any] | None:
    """Returns the content of a run's `config.json`; None if it cannot be read, which `from_pretrained` reports."""
    try:
        return None if run is None else json.loads((Path(run) / "config.json").read_text())
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
        raise BadInput("data_dir", f"{train.spec.name} has no labels to probe for", "Give images with labels")
    settings = {name: value for name, value in dump(command.settings).items() if name not in ("type", "every")}
    settings["weights"] = source.weights  # an export holds only one kind of weights, regardless of the flag
    print(f"{source.describe()}; probed with {', '.join(f'{name} {value}' for name, value in settings.items())}")
    mesh, began = make_mesh(), time.perf_counter()
    size = round_up_to_devices(command.batch_size or source.data.eval_batch_size, mesh)
    with Terminal(1, work="probing", unit="probe") as terminal:
        context = EvalContext(
            *(train, test, source.path, source.data.size, size, mesh),
            tokenizer=source.tokenizer,
            threads=source.data.workers,
            notify=terminal.print,
            phase=terminal.phase,
        )
        terminal.phase("probing")
        key = jax.random.fold_in(jax.random.key(command.seed), EVALUATION_KEY)
        metrics = dict(command.settings.build(context)(source.model, key).scalars)
    width = max(map(len, metrics)) + 2
    print("\n".join(f"  {name:{width}}{value:.4f}" for name, value in metrics.items()))
    data = {"name": train.spec.name, "train": source.data.train_split, "test": source.data.test_split}
    data |= {"train_images": len(train), "test_images": len(test), "size": source.data.size}
    return {
        "benchmark": "probe",
        "metrics": metrics,
        "settings": settings,
        "seed": command.seed,
        "network": source.describe(),
        "weights": source.digest,
        "tokenizer": None if source.latents is None else source.latents.spec.digest,
        "data": data | {"sha256": [source_hash(train), source_hash(test)]},
        "precision": source.config.precision,
        "recipe": source.trained,
        "batch_size": size,
        "versions": {name: importlib.metadata.version(name) for name in ("umd_eqx", "jax", "numpy")},
        "seconds": time.perf_counter() - began,
    }
