"""`experiments/layers.py`: probe accuracy at each layer and noise level of a network, as a heat map."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from umd_eqx.commands.probe import recorded_config, recorded_settings
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
from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.core.types import FeatureKind
from umd_eqx.eval import EvalContext, FewShot
from umd_eqx.eval.layers import LayerMap, chosen_layers, draw_images, layer_map, require_layers
from umd_eqx.models import AbstractLayeredModel
from umd_eqx.recipes.dump import dump
from umd_eqx.report import HeatMap, Terminal, save_png
from umd_eqx.report.heatmap import picture
from umd_eqx.report.textable import text_table
from umd_eqx.runs.pretrained import Pretrained, Weights, from_pretrained
from umd_eqx.runs.run import EVALUATION_KEY

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75)
"""The noise levels by default, besides that of the run's own probe."""

PROBE_FIELDS = ("shots", "seeds", "l2", "pool", "test_images")


@dataclasses.dataclass(frozen=True)
class Layers:
    """Probe every layer of a trained network at several noise levels. Defaults are those of the run's own probe."""

    run: str | None = None
    """Run directory or exported safetensors file. None: the small weights included in the package."""
    weights: Weights = "raw"
    """Weights of the run: raw, or ema for their moving average (raw if the run keeps none)."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers, from 1, the first block of the encoder, to the last of the decoder. By default, all."""
    levels: tuple[float, ...] = LEVELS
    """Noise levels of the images: times of the path, from 0 (clean) to 1 (noise)."""
    features: FeatureKind = "class_tokens"
    """Features to probe: the mean of the class tokens, the mean of the patches, or their concatenation."""
    shots: int = FewShot.shots
    """Number of training images per class."""
    seeds: int = FewShot.seeds
    """Number of random draws of the training images."""
    l2: float | None = FewShot.l2
    """Ridge penalty. None: chosen for each probe by leave-one-out accuracy on the training images of a draw."""
    pool: int | None = FewShot.pool
    """Number of training images, from the first, that shots are drawn from. None: all."""
    test_images: int | None = FewShot.test_images
    """Number of test images, evenly spaced over the split. None: all."""
    tokenizer: str | None = None
    """Location of the tokenizer, for a network trained on latents. None: its location at training time."""
    data_dir: Annotated[str | None, tyro.conf.arg(name="data.dir", aliases=["--data-dir"])] = None
    """Folder of the images. None: that of the run, $TFDS_DATA_DIR, or the images included in the package."""
    seed: int = 0
    """Random seed of the noise added to the images."""
    batch_size: int | None = None
    """Number of images processed at once, over all devices. None: that of the run."""
    json: str | None = None
    """Write the result to this JSON file. The run directory keeps a copy in eval/."""
    out: str | None = None
    """Also write the heat map to this PNG file. The report of the run shows it in any case."""

    def probe(self) -> FewShot:
        """The settings of the probe."""
        return FewShot(**{name: getattr(self, name) for name in PROBE_FIELDS}, weights=self.weights)

    def validate(self) -> None:
        """Raises `BadInput` naming the invalid flag, before the network is read."""
        self.probe().validate(field="")
        if not self.levels:
            raise BadInput("levels", "no noise level is given", "Give one or more, from 0 (clean) to 1 (noise)")
        for level in self.levels:
            if not 0 <= level <= 1:
                raise BadInput(
                    "levels", f"{level:g} is outside [0, 1]", "Use times of the path, 0 (clean) to 1 (noise)"
                )
        if self.batch_size is not None and self.batch_size < 1:
            raise BadInput("batch_size", f"{self.batch_size} is not a valid batch size", "Use 1 or more")
        if not 0 <= self.seed < 2**32:
            raise BadInput("seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
        for field in ("json", "out"):
            if (file := getattr(self, field)) is not None:
                require_writable(field, file)
        require_place(self.run, None)


def probe_layers(words: list[str], types: Mapping[str, type] | None = None) -> int:
    """Runs the command and returns its exit code. `types` are user-defined classes that the run may contain.

    With the run's own settings, the accuracy at the network's representation and the level of the run's own probe
    equals what the run measured at its last checkpoint.

    **Raises:** `BadInput` naming the invalid flag.
    """
    own_types = tuple((types or {}).values())
    recorded = recorded_config(flag_value(words, "--run"))
    own, seed = recorded_settings(recorded)
    command = tyro.cli(
        Layers,
        args=words,
        default=_default(own, seed),
        description="Probe every layer of a trained network at several noise levels.",
    )
    command.validate()
    options = {"weights": command.weights, "tokenizer": command.tokenizer}
    source = from_pretrained(command.run, **options, recorded=recorded, types=own_types)
    model = require_layers(source.model, "run")
    layers = chosen_layers(model, command.layers, "layers")
    levels = tuple(sorted(set(command.levels)))
    if source.denoises is False and levels[-1] > 0:
        note = (
            "the network was not trained on noised images: at levels above 0, its features are those of unusual inputs"
        )
        print(f"warning: {note}", file=sys.stderr)
    found, result = _measured(command, source, model, layers, levels)
    heatmap = _heatmap(command, source, found, _own_cell(model, layers, levels, own.time))
    print(_table(found, layers))
    print(_summary(found, heatmap.marked))
    settled = {name: result[name] for name in ("settings", "numbers", "levels", "seed", "weights", "data", "tokenizer")}
    name = f"layers-{source.weights}-step{source.step}-{settings_hash(settled)}"
    if command.out is not None:
        with disk_errors(command.out, "out", on_retry=""):
            save_png(command.out, picture(heatmap))
    measured = save_result(result | {"heatmap": heatmap.to_json()}, name, command.run, command.json, own_types)
    show_in_report(command.run, own_types, measured=measured)
    return 0


def _default(own: FewShot, seed: int) -> Layers:
    probed = {name: getattr(own, name) for name in PROBE_FIELDS}
    levels = tuple(sorted({*LEVELS, own.time}))
    features = own.headline or own.features[0]
    return Layers(weights=own.weights, levels=levels, features=features, seed=seed, **probed)


def _measured(
    command: Layers,
    source: Pretrained,
    model: AbstractLayeredModel,
    layers: tuple[int, ...],
    levels: tuple[float, ...],
) -> tuple[LayerMap, dict[str, Any]]:
    """Returns the accuracies, and the record of them with everything that they depend on."""
    train, test = open_data(source, command.data_dir)
    if not train.spec.num_classes:
        raise BadInput("data.source.dir", f"{train.spec.name} has no labels to probe for", "Give images with labels")
    mesh, began = make_mesh(), time.perf_counter()
    size = round_up_to_devices(command.batch_size or source.data.eval_batch_size, mesh)
    context = EvalContext(
        *(train, test, source.path, source.data.size, size, mesh),
        tokenizer=source.tokenizer,
        threads=source.data.workers,
    )
    drawn = draw_images(command.probe(), context)
    key = jax.random.fold_in(jax.random.key(command.seed), EVALUATION_KEY)
    print(f"{source.describe()}; {len(layers)} layers at {len(levels)} noise levels, {command.features}")
    total = (len(drawn.train) + len(drawn.test)) * len(levels)
    with Terminal(total, work="representing", unit="image") as terminal:
        context = dataclasses.replace(context, notify=terminal.print, phase=terminal.phase)
        terminal.phase("compiling")
        options = {"kind": command.features, "l2": command.l2, "progress": lambda done: terminal.update(done, {})}
        found = layer_map(model, context, drawn, layers, levels, key, **options)
    settings = {name: dump(getattr(command, name)) for name in (*PROBE_FIELDS, "features")}
    pairs = [(i, j) for i in range(len(layers)) for j in range(len(levels))]
    return found, {
        "benchmark": "layers",
        "metrics": {f"{found.layers[i]}/t={levels[j]:g}/top1": float(found.mean[i, j]) for i, j in pairs},
        "layers": list(found.layers),
        "numbers": list(layers),
        "levels": list(levels),
        "top1": found.mean.tolist(),
        "spread": None if found.spread is None else found.spread.tolist(),
        "settings": settings | {"weights": source.weights},
        "seed": command.seed,
        **probed_network(source),
        "data": probed_data(source, train, test),
        "batch_size": size,
        "seconds": time.perf_counter() - began,
    }


def _own_cell(
    model: AbstractLayeredModel, layers: tuple[int, ...], levels: tuple[float, ...], own: float
) -> tuple[int, int] | None:
    """The row and column of the network's representation at the level of the run's own probe, if they are measured."""
    if model.represented_layer not in layers or own not in levels:
        return None
    return layers.index(model.represented_layer), levels.index(own)


def _heatmap(command: Layers, source: Pretrained, found: LayerMap, own: tuple[int, int] | None) -> HeatMap:
    draws = "one draw" if command.seeds == 1 else f"the mean of {command.seeds} draws"
    kinds = {"class_tokens": "class tokens", "patches": "patches", "both": "class tokens and patches"}
    probed = f"{command.shots} training images per class, {draws}"
    framed = "In the frame: the representation of the network, as its own probe sees it. " if own is not None else ""
    return HeatMap(
        "Where the representation lives",
        f"Top-1 of a ridge probe in percent, {kinds[command.features]}, {source.weights} weights, step {source.step:,}",
        found.layers,
        tuple(f"{level:g}" for level in found.levels),
        "noise level",
        found.mean,
        own,
        f"{probed}. {framed}The best of all cells is chosen on the test images, and is therefore too optimistic.",
    )


def _table(found: LayerMap, numbers: tuple[int, ...]) -> str:
    """The accuracies as aligned lines, the best marked with a star."""
    best = np.unravel_index(np.argmax(found.mean), found.mean.shape)
    rows = [
        [f"{number:3}  {name}", *(f"{value:.2f}{'*' if (i, j) == best else ' '}" for j, value in enumerate(row))]
        for i, (number, name, row) in enumerate(zip(numbers, found.layers, found.mean, strict=True))
    ]
    return "\n" + text_table(["layer", *(f"t={level:g} " for level in found.levels)], rows)


def _summary(found: LayerMap, own: tuple[int, int] | None) -> str:
    i, j = np.unravel_index(np.argmax(found.mean), found.mean.shape)
    best = f"* best on the test images: {found.layers[i]} at t={found.levels[j]:g}, {found.mean[i, j]:.2f} %"
    if own is None:
        return best
    mine = f"{found.layers[own[0]]} at t={found.levels[own[1]]:g}, {found.mean[own]:.2f} %"
    return f"{best}; the representation of the network: {mine}"
