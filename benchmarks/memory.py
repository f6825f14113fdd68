"""Memory of the compiled training step and evaluators of every preset at full size.

    python benchmarks/memory.py [--presets NAME ...] [--devices 1 8] [--parts NAME ...] [--json FILE]

All programs are compiled from shapes: no arrays are allocated, no data are read, and the weights of Inception and of
the Stable Diffusion VAE are not needed. The devices are virtual CPU devices. The figures are those of XLA's CPU
compiler: arguments (weights and batch), temporaries and outputs on each device. Each row describes one part of a
preset; its bytes are those of the largest program of the part.
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
    """Options of the benchmark."""

    presets: tuple[str, ...] = tuple(RECIPES)
    """Presets to measure, including those of the tokenizers and of the classifier."""
    devices: tuple[int, ...] = (1, 8)
    """Numbers of devices to compile for."""
    parts: tuple[str, ...] = ()
    """Parts to measure: step, encoding, or names of evaluators. Empty: all parts."""
    json: Path | None = None
    """JSON file for the results, updated after each preset."""

    def validate(self) -> None:
        """Raises `BadInput` for an unknown preset, a number of devices below 1, or a file that cannot be written."""
        for name in self.presets:
            if name not in RECIPES:
                raise BadInput("presets", f"{name!r} is not a preset", f"Choose one of: {', '.join(RECIPES)}")
        if not self.devices or min(self.devices) < 1:
            raise BadInput("devices", f"{self.devices} are not valid numbers of devices", "Use 1 or more")
        if self.json is not None:
            require_writable("json", self.json)


def parts_of(preset: str, devices: int) -> Parts:
    """Returns the programs of each part of a preset on `devices` devices."""
    return config_parts(RECIPES[preset](), devices)


def config_parts(config: Config, devices: int) -> Parts:
    """Returns the programs of each part of a run, including the latent statistics that end the run of a tokenizer."""
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
    """Compiles each distinct program once; many presets share their evaluation programs."""

    def __init__(self) -> None:
        self._known: dict[str, Memory] = {}

    def __call__(self, program: Program, devices: int) -> Memory:
        """Returns the memory of the program on each device."""
        lowered = program.lower()
        text = hashlib.sha256(f"{devices} {lowered.as_text()}".encode()).hexdigest()
        if text not in self._known:
            self._known[text] = compiled_memory(lowered)
        return self._known[text]


def measure(parts: Parts, preset: str, devices: int, memory: Callable[[Program, int], Memory]) -> list[Row]:
    """Returns a row per part with the memory of its largest program in detail and the total of every program."""
    rows = []
    for part, some in parts.items():
        found = {name: memory(program, devices) for name, program in some.items()}
        if found:
            program = max(found, key=lambda name: found[name].total)
            totals = {name: each.total for name, each in found.items()}
            row = {"preset": preset, "part": part, "devices": devices, "bytes": found[program].total}
            rows.append(row | {"program": program} | found[program]._asdict() | {"programs": totals})
    return rows


def table(rows: list[Row]) -> str:
    """Returns a Markdown table with a line per preset: GB of the step, and of the largest other part with its name."""
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
    """Runs the benchmark, prints the table and writes the JSON file."""
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
    """Sets the number of virtual CPU devices, which is only possible before JAX is first used, and calls `run`."""
    requested = tyro.cli(Options, args=words, description=__doc__).devices
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max([1, *requested]))
    return run(words)


if __name__ == "__main__":
    exit_with(force_devices)
