"""`experiments/features.py`: writes the representation of any images to an .npz file, for other programs."""

import dataclasses
import functools
import importlib.metadata
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Float, Int

from umd_eqx.commands.leaves import KINDS, choose, with_types
from umd_eqx.commands.probe import recorded_config, recorded_settings
from umd_eqx.commands.training import flag_value
from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import replacing, save_json
from umd_eqx.core.json_files import parse_json
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.core.types import FeatureKind
from umd_eqx.data.broken import CountBroken
from umd_eqx.data.places import names_of
from umd_eqx.data.source import DataSource
from umd_eqx.data.source_configs import SOURCES, TFDS, AbstractSource, Images
from umd_eqx.eval import EvalContext
from umd_eqx.eval.features import require_representation
from umd_eqx.eval.layers import chosen_layers, feature_batches, require_layers
from umd_eqx.latents.store import source_hash
from umd_eqx.report import Terminal
from umd_eqx.runs.pretrained import Pretrained, Weights, from_pretrained
from umd_eqx.runs.run import EVALUATION_KEY

FORMAT = 1
"""Format version of the file, increased when an array or an entry of the metadata gets another meaning."""

SHOWN = 10
"""How many broken images are named in the terminal; the metadata name all."""


@dataclasses.dataclass(frozen=True)
class RepresentedData:
    """The images to represent: those that the network was trained on, unless their location or name is given."""

    source: Annotated[AbstractSource, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TFDS)
    """The source of the images; its fields are separate flags, such as --data.dir."""
    split: str | None = None
    """The split, such as test or train[:1000]. None: all images of class folders, of a folder of images, and of .npz,
    .tar and .parquet files; of other data, the test images."""
    max_broken: int | None = None
    """Maximum number of images with unreadable data or an invalid label, which are left out. More is an error. None:
    1 % of the split, and at least 10."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Write the representation of images to an .npz file."""

    out: Annotated[str, tyro.conf.arg(help="Output file, ending in .npz.")]
    run: str | None = None
    """Run directory or exported safetensors file. None: the small weights included in the package."""
    weights: Weights = "raw"
    """Weights of the run: raw, or ema for their moving average (raw if the run keeps none)."""
    tokenizer: str | None = None
    """Location of the tokenizer, for a network trained on latents. None: its location at training time."""
    data: RepresentedData = dataclasses.field(default_factory=RepresentedData)
    features: FeatureKind = "both"
    """The mean of the class tokens, the mean of the patches, or both: the former followed by the latter."""
    layer: int | None = None
    """Number of a layer, from 1, the first block of the encoder, to the last block of the decoder. None: the
    representation of the network, after the last block of the encoder."""
    time: Annotated[float, tyro.conf.arg(aliases=["--t"])] = 0.0
    """Noise level of the images, from 0 (clean) to 1; by default that of the run's own probe."""
    seed: int = 0
    """Random seed of the noise added to the images if --time is not 0."""
    limit: int | None = None
    """Represent only this many images, from the start of the split. None: all of them."""
    batch_size: int | None = None
    """Number of images processed at once, over all devices. None: that of the run."""
    json: str | None = None
    """Write a summary to this JSON file: the metadata, images per second, and the images that could not be read."""

    def validate(self) -> None:
        """Raises `BadInput` naming the invalid flag, before the network is read."""
        for field, least in (("limit", 1), ("batch_size", 1), ("layer", 1), ("data.max_broken", 0)):
            value = functools.reduce(getattr, field.split("."), self)
            if isinstance(value, int) and value < least:
                raise BadInput(field, f"{value} is too small", f"Use {least} or more")
        if not 0 <= self.time <= 1:
            raise BadInput("time", f"{self.time:g} is outside [0, 1]", "Use a time of the path, 0 (clean) to 1 (noise)")
        if not 0 <= self.seed < 2**32:
            raise BadInput("seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
        if Path(self.out).suffix != ".npz":
            raise BadInput("out", f"{self.out} does not end in .npz", "Choose a name that does")
        require_writable("out", self.out)
        if self.json is not None:
            require_writable("json", self.json)


@dataclasses.dataclass(frozen=True)
class _Images:
    data: RepresentedData


class _Opened(NamedTuple):
    """The images, where they lie, their fingerprint, and the split that was opened."""

    images: DataSource
    dir: str | None
    digest: str
    split: str


def write_features(words: list[str], types: Mapping[str, type] | None = None) -> int:
    """Runs the command and returns its exit code. `types` are user-defined classes that the run may contain.

    The file has the arrays `features` (n, d), float32, and a row for each image that can be read in `labels` (-1 for
    an image without a label), `indices` (its index in the split) and `names` (`umd_eqx.data.places.names_of`);
    `metadata` is a JSON text. `np.load(file)` reads it without pickle. The same command writes the same bytes.

    **Raises:** `BadInput` naming the invalid flag. Images that cannot be read are left out, counted and named.
    """
    own_types = types or {}
    recorded = recorded_config(flag_value(words, "--run"))
    own, seed = recorded_settings(recorded)
    chosen, rest, _ = choose(_Images(RepresentedData()), words, with_types(KINDS, own_types))
    command = tyro.cli(
        functools.partial(Features, data=chosen.data, time=own.time, seed=seed, weights=own.weights),
        args=rest,
        description=f"Represent any images by a trained network. --data.source is one of {', '.join(SOURCES)}.",
    )
    command.validate()
    existing = _settings_of(command.out)
    options = {"weights": command.weights, "tokenizer": command.tokenizer}
    source = from_pretrained(command.run, **options, recorded=recorded, types=own_types.values())
    require_representation(source.model, "run")
    layers = None
    if command.layer is not None:
        layers = chosen_layers(require_layers(source.model, "run"), [command.layer], "layer")
    opened = _opened(command, source, words)
    count = len(opened.images) if command.limit is None else min(command.limit, len(opened.images))
    settings = _settings(command, source, opened, count)
    if existing is not None:
        if existing != settings:
            problem = f"{command.out} already exists, with other features"
            raise BadInput("out", problem, "Choose another name, or delete it")
        print(f"{command.out} already has these features")
        return 0
    kind = "the representation" if command.layer is None else f"layer {command.layer}"
    print(f"{source.describe()}; {kind} of {count:,} images of {opened.images.spec.name}, split {opened.split}")
    _represent(command, source, opened, settings, layers, count)
    return 0


def _settings_of(out: str) -> dict[str, Any] | None:
    """The settings of an existing file of features; None if there is no file. Raises `BadInput` for any other file."""
    if not Path(out).exists():
        return None
    try:
        # np.load leaves a file that is not a zip archive open if it opens it by itself.
        with open(out, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return parse_json(str(file["metadata"]).encode())["settings"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        problem = f"{out} already exists, and is not a file of features"
        raise BadInput("out", problem, "Choose another name, or delete it") from error


def _opened(command: Features, source: Pretrained, words: Sequence[str]) -> _Opened:
    """Opens the images: of the run, or those that flags name, converted to the channels of the network."""
    given = {word.partition("=")[0].partition(".")[2] for word in words if word.startswith("--data.")}
    images, split = source.data.source, source.data.test_split
    if given - {"split", "max-broken", "max_broken"}:
        images, split = command.data.source, "test"
        if isinstance(images, TFDS):
            trained = source.data.source
            if "name" not in given and isinstance(trained, TFDS):
                images = dataclasses.replace(images, name=trained.name)
            images = images.located((images.name,) if "name" not in given else ())
        if isinstance(images, Images) and images.channels is None:
            images = dataclasses.replace(images, channels=source.spec.channels)
    if command.data.split is not None:
        split = command.data.split
    elif isinstance(images, Images):
        split = "+".join(images.splits())
    opened = images.open(split, field="data.split")
    if opened.spec.channels != source.spec.channels:
        problem = f"{opened.spec.name} has {opened.spec.channels} channels, but the network has {source.spec.channels}"
        raise BadInput("data.source.dir", problem, "Give other images")
    return _Opened(opened, getattr(images, "dir", None), images.digest() or source_hash(opened), split)


def _settings(command: Features, source: Pretrained, opened: _Opened, count: int) -> dict[str, Any]:
    """Everything that the features depend on. Files with the same settings hold the same features."""
    return {
        "network": source.digest,
        "tokenizer": None if source.latents is None else source.latents.spec.digest,
        "features": command.features,
        "layer": command.layer,
        "time": command.time,
        "seed": command.seed,
        "data": opened.digest,
        "split": opened.split,
        "images": count,
        "size": source.data.size,
        "crop": "fewshot",
    }


def _represent(
    command: Features,
    source: Pretrained,
    opened: _Opened,
    settings: Mapping[str, Any],
    layers: tuple[int, ...] | None,
    count: int,
) -> None:
    """Computes the features and writes the files."""
    began = time.perf_counter()
    counted = CountBroken(opened.images, command.data.max_broken, split=opened.split)
    with Terminal(count, work="representing", unit="image") as terminal:
        features, labels, indices = _computed(command, source, counted, layers, count, terminal)
    if not len(indices):
        raise BadInput("data.source.dir", f"none of the {count} images can be read", "Check the files")
    named = functools.partial(names_of, opened.images, root=opened.dir, split=opened.split)
    broken = named(np.array(sorted(counted.broken), np.int64))
    metadata = {
        "format": FORMAT,
        "run": command.run,
        "description": source.describe(),
        "preset": source.preset,
        "step": source.step,
        "weights": source.weights,
        "layer_name": None if layers is None else require_layers(source.model, "run").layers[layers[0] - 1],
        "data": opened.images.spec.name,
        "settings": dict(settings),
        "broken": broken,
        "versions": {name: importlib.metadata.version(name) for name in ("umd_eqx", "jax", "numpy")},
    }
    arrays = {"features": features, "labels": labels, "indices": indices, "names": np.array(named(indices))}
    _save(command.out, arrays | {"metadata": np.array(json.dumps(metadata))})
    seconds = time.perf_counter() - began
    if broken:
        some = ", ".join(broken[:SHOWN]).encode("utf-8", "backslashreplace").decode()
        more = ", ..." if len(broken) > SHOWN else ""
        print(f"{len(broken)} image{'s' * (len(broken) > 1)} could not be read, left out: {some}{more}")
    print(f"{len(features):,} x {features.shape[1]} features in {seconds:.1f} s: {command.out}")
    if command.json is not None:
        figures = {"images": len(features), "width": features.shape[1], "seconds": seconds}
        with disk_errors(command.json, "json", on_retry=""):
            save_json(command.json, [metadata | figures | {"images_per_s": count / seconds}])


def _save(out: str, arrays: Mapping[str, Any]) -> None:
    """Writes arrays to an .npz file, atomically. Raises `BadInput` naming `out` if the disk is full."""
    with disk_errors(out, "out", on_retry=""), replacing(out) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _computed(
    command: Features,
    source: Pretrained,
    images: CountBroken,
    layers: tuple[int, ...] | None,
    count: int,
    terminal: Terminal,
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Returns features, labels and indices of the images that can be read."""
    mesh = make_mesh()
    size = round_up_to_devices(command.batch_size or source.data.eval_batch_size, mesh)
    context = EvalContext(
        *(images, images, source.path, source.data.size, size, mesh),
        tokenizer=source.tokenizer,
        threads=source.data.workers,
        notify=terminal.print,
        phase=terminal.phase,
    )
    key = jax.random.fold_in(jax.random.key(command.seed), EVALUATION_KEY)
    given = (np.arange(count), layers, command.features, command.time, key)
    model = require_representation(source.model, "run")
    terminal.phase("compiling")
    features, labels, indices = np.zeros((0, 0), np.float32), np.zeros(count, np.int64), np.zeros(count, np.int64)
    filled, began = 0, time.perf_counter()
    for number, found in enumerate(feature_batches(model, context, "test", *given), start=1):
        if not features.size:
            features = np.zeros((count, found.features[0].shape[1]), np.float32)
        rows = slice(filled, filled + len(found.indices))
        features[rows], labels[rows], indices[rows] = found.features[0], found.labels, found.indices
        filled, done = rows.stop, min(number * size, count)
        terminal.update(done, {"throughput/images_per_s": done / (time.perf_counter() - began)})
    return features[:filled], labels[:filled], indices[:filled]
