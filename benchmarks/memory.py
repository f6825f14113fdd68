"""Compiled memory of the training step and of every evaluator of every preset, at its full size.

    python benchmarks/memory.py [--presets NAME ...] [--devices 1 8] [--parts NAME ...] [--json FILE]

Everything is compiled from shapes: no array is allocated, no data are read, and neither the weights of Inception nor
those of the Stable Diffusion VAE are needed. The devices are forced CPU devices, and the figures those of XLA's CPU
compiler: arguments (weights and batch), temporaries and outputs on each device. A row is a part of a preset; its bytes
are those of the largest program that the part compiles.
"""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.programs import Memory, Program, abstract, compiled_memory
from umd_eqx.core.sharding import batch_sharding, make_mesh, replicated
from umd_eqx.eval.averages import mean_program
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.models.tokenizers.files import latent_moments
from umd_eqx.recipes.build import build
from umd_eqx.recipes.classifier import CLASSIFIERS
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.recipes.tokenizers import TOKENIZERS
from umd_eqx.runs.memory import STEP, programs

RECIPES = {
    **PRETRAIN,
    **FINETUNE,
    **{f"tokenizer-{name}": recipe for name, recipe in TOKENIZERS.items()},
    **CLASSIFIERS,
}

Parts = dict[str, dict[str, Program]]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    presets: tuple[str, ...] = tuple(RECIPES)
    """Which presets, those of the tokenizers and the classifier included."""
    devices: tuple[int, ...] = (1, 8)
    """On how many devices."""
    parts: tuple[str, ...] = ()
    """Which parts: step, encoding, or evaluators by their names. None: all."""
    json: Path | None = None
    """Write the rows there, after each preset."""

    def validate(self) -> None:
        """Raises `BadInput` for an unknown preset, devices below 1, and a file that cannot be written."""
        for name in self.presets:
            if name not in RECIPES:
                raise BadInput("presets", f"there is no {name!r}", f"Choose one of: {', '.join(RECIPES)}")
        if not self.devices or min(self.devices) < 1:
            raise BadInput("devices", f"{self.devices} are not numbers of devices", "Use 1 or more")
        if self.json is not None:
            require_writable("json", self.json)


def parts_of(preset: str, devices: int) -> Parts:
    """The programs of each part of a preset on so many devices."""
    return config_parts(RECIPES[preset](), devices)


def config_parts(config: Config, devices: int) -> Parts:
    """The programs of each part of a run, and of what a tokenizer's run measures at its end."""
    assert config.data.expected is not None
    mesh = make_mesh(jax.devices()[:devices])
    built = build(config, config.data.expected, mesh)
    parts, model = programs(built), built.abstract_state().model
    if isinstance(model, AbstractTokenizer):
        shape = (config.data.eval_batch_size, *config.image_shape(built.spec))
        images = abstract(jax.ShapeDtypeStruct(shape, "float32"), batch_sharding(mesh))
        parts["statistics"] = {"encode": mean_program(latent_moments, abstract(model, replicated(mesh)), images, mesh)}
    return parts


class Compiler:
    """Compiles each program once: many presets evaluate alike."""

    def __init__(self) -> None:
        self._known: dict[str, Memory] = {}

    def __call__(self, program: Program, devices: int) -> Memory:
        """What the program takes on each of its devices."""
        lowered = program.lower()
        text = hashlib.sha256(f"{devices} {lowered.as_text()}".encode()).hexdigest()
        if text not in self._known:
            self._known[text] = compiled_memory(lowered)
        return self._known[text]


def measure(parts: Parts, preset: str, devices: int, memory: Callable[[Program, int], Memory]) -> list[Row]:
    """A row for each part: the memory of its largest program, and that of each of them."""
    rows = []
    for part, some in parts.items():
        found = {name: memory(program, devices) for name, program in some.items()}
        if found:
            program = max(found, key=lambda name: found[name].total)
            every = {name: each.total for name, each in found.items()}
            row = {"preset": preset, "part": part, "devices": devices, "bytes": found[program].total}
            rows.append(row | {"program": program} | found[program]._asdict() | {"programs": every})
    return rows


def table(rows: list[Row]) -> str:
    """A line for each preset as Markdown: gigabytes of the step, and of the largest other part with its name."""
    counts = sorted({row["devices"] for row in rows})
    heads = [f"{what}, {n} device{'s' * (n > 1)}" for n in counts for what in ("step", "largest other part")]
    lines = [["preset", *heads], ["---"] * (1 + len(heads))]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        cells = [f"`{preset}`"]
        for n in counts:
            mine = [row for row in rows if (row["preset"], row["devices"]) == (preset, n)]
            step = [row for row in mine if row["part"] == STEP]
            rest = sorted((row for row in mine if row["part"] != STEP), key=lambda row: row["bytes"])[-1:]
            cells.append("".join(f"{row['bytes'] / 1e9:.2f}" for row in step) or "-")
            cells.append("".join(f"{row['bytes'] / 1e9:.2f} ({row['part']})" for row in rest) or "-")
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(words: list[str]) -> int:
    """Measures, prints the table, and writes the rows."""
    options = tyro.cli(Options, args=words, description=__doc__)
    options.validate()
    rows, memory = [], Compiler()
    for preset in options.presets:
        for devices in options.devices:
            began = time.perf_counter()
            parts = parts_of(preset, devices)
            rows += measure({p: parts[p] for p in parts if p in (options.parts or parts)}, preset, devices, memory)
            print(f"{preset} on {devices}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        jax.clear_caches()
        if options.json is not None:
            save_json(options.json, rows)
    print(f"GB on each device, compiled for {jax.devices()[0].device_kind}\n\n{table(rows)}")
    return 0


def force_devices(words: list[str]) -> int:
    """Takes as many CPU devices as are asked for, which must be done before JAX is first used, and runs."""
    asked = tyro.cli(Options, args=words, description=__doc__).devices
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max([1, *asked]))
    return run(words)


if __name__ == "__main__":
    exit_with(force_devices)
