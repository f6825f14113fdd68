"""Loads trained networks from a run, from an export (safetensors and a JSON card) or from the package."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from etils import epath

from umd_eqx.core.cards import open_card, read_weights, require_described, save_weights
from umd_eqx.core.errors import BadInput
from umd_eqx.core.exports import card_at, local_weights, new_weights, writing_weights
from umd_eqx.core.hashes import sha256_of_weights
from umd_eqx.core.json_files import read_json
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.remote import is_url
from umd_eqx.core.sharding import make_mesh, replicated
from umd_eqx.core.tensors import fill, named_leaves
from umd_eqx.core.types import DataSpec, LatentSpec, same_tokenizer
from umd_eqx.models import AbstractModel
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.objectives import AbstractObjective, denoising
from umd_eqx.recipes.build import Built, build
from umd_eqx.recipes.config import Config, DataConfig, Start
from umd_eqx.recipes.dump import dump, load
from umd_eqx.runs.card_checks import Weights, require_sane_latents, require_sane_network
from umd_eqx.runs.tokenizers import Latents, load_latents
from umd_eqx.training.checkpoint import FOLDER, Checkpoints
from umd_eqx.training.step import TrainState

FORMAT = 1
"""Format version of the card. Cards with a larger version are rejected."""

SHIPPED = Path(__file__).parents[1] / "weights" / "umd-ft.safetensors"
"""The small weights included in the package: UMD on the embedded images, fine-tuned with labels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained network and the information needed to use it.

    - `model`: the network, with parameters in float32.
    - `config`, `path`: the configuration that builds the network, and the path it was trained on.
    - `data`: the data configuration of its training; `spec`: the description of the data.
    - `latents`: its tokenizer, with the tokenizer's name; None for a network trained on pixels.
    - `preset`, `step`, `weights`: the preset and step of its training, and the kind of weights.
    - `denoises`: whether it was trained on noised images, so images can be sampled from it. None: unknown, for an
        export without this entry or a user-defined objective.
    - `trained`, `environment`: the configuration of its run as plain data (`umd_eqx.recipes.dump.dump`), and the
        content of its `environment.json`; None for an export.
    """

    model: AbstractModel
    config: AbstractModelConfig
    path: AbstractPath
    data: DataConfig
    spec: DataSpec
    preset: str
    step: int
    weights: Weights
    latents: Latents | None = None
    denoises: bool | None = None
    trained: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None

    @property
    def tokenizer(self) -> AbstractTokenizer | None:
        """The tokenizer of its latents; None for a network trained on pixels."""
        return None if self.latents is None else self.latents.tokenizer

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the weights, independent of the file they are stored in."""
        return sha256_of_weights(named_leaves(self.model))

    def describe(self) -> str:
        """A one-line description of the network."""
        classes = "no labels" if self.model.num_classes is None else f"{self.model.num_classes} classes"
        return f"{self.preset}, {self.config.title}, {self.weights} weights of step {self.step:,}, {classes}"


def from_pretrained(
    path: str | os.PathLike[str] | None = None,
    *,
    weights: Weights = "ema",
    tokenizer: str | None = None,
    known: Latents | None = None,
    recorded: Mapping[str, Any] | None = None,
    field: str = "run",
    warn: Callable[[str], None] = print,
    types: Iterable[type] = (),
) -> Pretrained:
    """Loads a trained network from a run directory or an export. No pickle is loaded.

    **Arguments:**

    - `path`: a run directory, an exported `.safetensors` file (with its card beside it as `.json`), also at a URL, or a
        folder with one export. None: the weights included in the package.
    - `weights`: for a run, "raw" or "ema" for the average; if the run keeps no average, the raw weights. An export
        holds only the kind it was exported with.
    - `tokenizer`: the location of the tokenizer, for a network trained on latents. None: its location at training time.
    - `known`: a loaded tokenizer, reused if the network's tokenizer has the same name.
    - `recorded`: the content of a run's `config.json`, if it has been read already. None: reads it.
    - `field`: the field that named the path.
    - `warn`: called with a warning if a damaged checkpoint is skipped.
    - `types`: user-defined classes that the run's configuration may contain.

    **Raises:** `BadInput` if `path` is neither a run nor an export, cannot be read, or does not match its card.
    """
    location = SHIPPED if path is None else local_weights(path, field)
    if location.is_dir():
        if (location / "config.json").exists():
            return _from_run(location, weights, tokenizer, known, recorded, field, warn, tuple(types))
        exports = sorted(location.glob("*.safetensors"))
        if len(exports) != 1:
            found = f"{len(exports)} exports" if exports else "neither a run nor an export"
            raise BadInput(field, f"{location} holds {found}", "Pass a run directory or a .safetensors file")
        location = exports[0]
    if not location.exists():
        raise BadInput(field, f"there is no {location}", "Pass a run directory or a .safetensors file")
    return _from_export(location, tokenizer, known, field, tuple(types))


def initial_weights(
    start: Start,
    source: Pretrained | None = None,
    warn: Callable[[str], None] = print,
    types: Iterable[type] = (),
) -> AbstractModel:
    """The initial weights of a run: those of `source`, or loaded from `start` if it is None.

    **Raises:** `BadInput` as `from_pretrained` does, and if the weights differ from those the run was configured with.
    """
    if source is None:
        source = from_pretrained(start.source, weights=start.weights, field="from", warn=warn, types=types)
    if source.digest != start.digest:
        problem = f"the weights in {start.source} are not those that this run was configured with"
        raise BadInput("from", problem, "Restore the original weights, or use another `run_dir` to start a new run")
    return source.model


def export(source: Pretrained, path: str | os.PathLike[str], *, half: bool = False) -> Path | str:
    """Writes the weights as safetensors with a JSON card beside them, also to a URL; returns the path of the card.

    The card records everything that `from_pretrained` needs, and the fingerprint of the file. `half` stores the
    parameters in float16, at half the size; they are read back as float32.

    **Raises:** `BadInput` naming `out` if the name does not end in .safetensors, or if the files already exist.
    """
    content = {
        "format": FORMAT,
        "preset": source.preset,
        "step": source.step,
        "weights": source.weights,
        "model": dump(source.config),
        "path": dump(source.path),
        # The location of the data is meaningless on other machines.
        "data": dump(source.data.moved(None)),
        "spec": dump(source.spec),
        "denoises": source.denoises,
    }
    if source.latents is not None:
        content |= {"tokenizer": source.latents.source, "latent": dump(source.latents.spec)}
    with writing_weights(path, "out") as location:
        card = save_weights(new_weights(location), source.model, content, dtype=np.float16 if half else np.float32)
    return card_at(path) if is_url(path) else card


def _from_run(
    location: Path,
    weights: Weights,
    tokenizer: str | None,
    known: Latents | None,
    recorded: Mapping[str, Any] | None,
    field: str,
    warn: Callable[[str], None],
    types: tuple[type, ...],
) -> Pretrained:
    try:
        kept = read_json(location / "config.json") if recorded is None else recorded
        parts = {name: load(kept["config"][name], types) for name in ("model", "path", "data", "optim", "ema")}
        # Runs from before latents were supported have neither.
        parts |= {name: load(kept["config"].get(name)) for name in ("tokenizer", "latent")}
        if "trainable" in kept["config"]:  # runs from before this field existed trained all parameters
            parts["trainable"] = load(kept["config"]["trainable"], types)
        facts = read_json(location / "environment.json")
        spec = DataSpec(**facts["data"])
    except FileNotFoundError as error:
        problem = f"{location} holds a run that has not started ({Path(error.filename).name} is missing)"
        raise BadInput(field, problem, "Train it first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(field, f"the configuration in {location} cannot be read", "Choose another run") from error
    latents = _latents(tokenizer or parts["tokenizer"], parts["latent"], known)
    # The objective and the evaluators of the run are not needed here, and may be user-defined classes.
    parts["optim"] = dataclasses.replace(parts["optim"], accumulate=1)
    config = Config(objective=denoising(), **parts)
    built = build(dataclasses.replace(config, data=_with_divisible_batch_size(config.data)), spec)
    network = eqx.filter_eval_shape(built.init_model)
    if not isinstance(network, AbstractModel):
        problem = f"{location} holds {parts['model'].title}, which is not a network that predicts images"
        run = "a run of pretrain.py or finetune.py"
        hint = f"Pass it to `tokenizer`, and {run} here" if isinstance(network, AbstractTokenizer) else f"Pass {run}"
        raise BadInput(field, problem, hint)
    step, state = restore_newest(built, location, field, warn)
    average = state.ema if weights == "ema" else None
    model = state.model if average is None else average
    assert isinstance(model, AbstractModel)
    kind = "raw" if average is None else "ema"
    objective = recorded_objective(kept["config"], types)
    denoises = None if objective is None else objective.denoises
    rest = (config.data, spec, kept["preset"], step, kind, latents, denoises, kept["config"], facts)
    return Pretrained(model, parts["model"], config.path, *rest)


def recorded_objective(trained: Mapping[str, Any], types: Iterable[type] = ()) -> AbstractObjective | None:
    """The objective of a run, given its configuration as plain data. None if it is unknown or cannot be read.

    `types` are user-defined classes that it may be made of.
    """
    try:
        found = load(trained.get("objective"), types)
    except (ValueError, TypeError, AttributeError):
        return None
    return found if isinstance(found, AbstractObjective) else None


def restore_newest(built: Built, run_dir: Path, field: str, warn: Callable[[str], None]) -> tuple[int, TrainState]:
    """Restores the newest checkpoint of a run, read-only, and its step. Raises `BadInput` if there is none."""
    folder = run_dir / FOLDER
    found = None
    if folder.is_dir():
        checkpoints = Checkpoints(epath.Path(folder.absolute()), keep=built.config.checkpoint.keep, writing=False)
        try:
            found = checkpoints.restore(built.abstract_state(), replicated(built.parts.mesh), warn)
        finally:
            checkpoints.close()
    if found is None:
        raise BadInput(field, f"{run_dir} has no checkpoint yet", "Train it until its first checkpoint")
    return found


def _latents(source: str | None, spec: LatentSpec | None, known: Latents | None) -> Latents | None:
    """Loads the tokenizer of a network trained on latents. Raises `BadInput` naming `tokenizer`."""
    if source is None or spec is None:
        return None
    latents = load_latents(source, known=known)
    if not same_tokenizer(latents.spec.digest, spec.digest):
        problem = f"{source} is not the tokenizer that the network was trained with"
        raise BadInput("tokenizer", problem, "Pass the tokenizer that it was trained with")
    return latents


def _with_divisible_batch_size(data: DataConfig) -> DataConfig:
    # Nothing is trained here, so the batch size need not be divisible by the devices of this machine.
    devices = make_mesh().size
    return dataclasses.replace(data, batch_size=devices, eval_batch_size=devices)


def _from_export(
    location: Path, tokenizer: str | None, known: Latents | None, field: str, types: tuple[type, ...]
) -> Pretrained:
    anew = "Export the weights again"
    file = read_weights(location, field)
    with open_card(location, field, anew, newest=FORMAT) as card:
        parts = {name: load(card[name], types) for name in ("model", "path", "data", "spec")}
        preset, step, kind, digest = (card[name] for name in ("preset", "step", "weights", "sha256"))
        named, latent = card.get("tokenizer"), load(card.get("latent"))
        denoises = card.get("denoises")
        if denoises not in (None, True, False):
            raise TypeError("denoises")
        require_sane_network(parts, preset, step, kind, types)
        require_sane_latents(named, latent)
        side = parts["data"].size // (1 if latent is None else latent.factor)
        parts["model"].validate(side)
        parts["path"].validate(field)
        channels = parts["spec"].channels if latent is None else latent.channels
        make = functools.partial(parts["model"].build, side, channels, parts["spec"].num_classes)
        like = eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))
        if not isinstance(like, AbstractModel):
            raise TypeError("model")
    require_described(location, file, digest, field, anew)
    spec, latents = parts["spec"], _latents(tokenizer or named, latent, known)
    model = fill(like, file.tensors, location, field, anew)
    return Pretrained(model, parts["model"], parts["path"], parts["data"], spec, preset, step, kind, latents, denoises)
