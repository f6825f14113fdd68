"""What the training step communicates, for each strategy, network size and number of devices: a contract, compiled.

    python benchmarks/collectives.py [--sizes B L H] [--devices 8 64 512] [--strategies dp fsdp ...] [--json FILE]

The step of UMD on ImageNet at 64 px with 1,024 images is compiled from shapes for virtual CPU devices; nothing is
allocated or run. All figures are ratios. Bytes are counted in the compiled program, with the bodies of loops multiplied
by their number of iterations, and divided by those of the parameters. The exit code is 1 if a row breaks the contract:

- data parallelism gathers nothing, and the gradient is reduced once;
- FSDP gathers each parameter twice, and the gradient is reduced once;
- tensor parallelism sums activations between the devices that share them;
- there is no all-to-all, and no other exchange of more than `EXCHANGED`;
- of the state, each device holds its part, and at most `UNDIVIDED` more.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import tyro

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.hlo import Collective, traffic
from umd_eqx.core.programs import is_shape
from umd_eqx.recipes.build import Built
from umd_eqx.recipes.pretrain import umd_b4_in64
from umd_eqx.runs.planning import STRATEGIES, Piece, pieces
from umd_eqx.runs.targets import Target, find_target

EXCHANGED = 0.02
"""The most that is exchanged in pairs of devices: the edges of images that are regrouped."""

UNDIVIDED = 0.002
"""The most of a state that each device may hold undivided: biases and other small arrays."""

GATHERED = {"dp": (0.0, 0.0), "fsdp": (1.9, 2.15), "tp": (0.0, 2.15), "fsdpxtp": (1.0, 2.6)}
"""Least and most gathers. With `tensor`, layers that are divided in use are gathered over `fsdp` alone."""

REDUCED = {"dp": (0.95, 1.05), "fsdp": (0.95, 1.05), "tp": (0.3, 1.05), "fsdpxtp": (0.3, 1.05)}
"""Least and most reductions of gradients. With `tensor`, each device has a part of some gradients only."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    sizes: tuple[str, ...] = ("B", "L", "H")
    """Network sizes, as in `--model.variant`."""
    devices: tuple[int, ...] = (8, 64, 512)
    """Numbers of devices to compile for."""
    strategies: tuple[str, ...] = STRATEGIES
    """Divisions: dp, fsdp, tp, fsdpxtp."""
    json: Path | None = None
    """JSON file for the rows, updated after each."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The step of one network for one division over the devices. Ratios are of the bytes of all parameters.

    - `gathered`: all-gathers, of parameters.
    - `reduced`: reductions of gradients: all-reduces and reduce-scatters over other axes than `tensor`.
    - `summed`: all-reduces of activations over `tensor`.
    - `exchanged`, `all_to_all`: collective permutes, and all-to-alls.
    - `state_share`: the part of the state on each device, times the number of devices that share a state.
    - `undivided`: what each device holds of the state beyond its part, over the state.
    - `broken`: the parts of the contract that do not hold.
    """

    size: str
    strategy: str
    devices: int
    data: int
    fsdp: int
    tensor: int
    gathered: float
    reduced: float
    summed: float
    exchanged: float
    all_to_all: float
    state_share: float
    undivided: float
    exact: bool
    broken: tuple[str, ...]
    compile_seconds: float


def run(words: list[str]) -> int:
    """Prints the table, and returns 1 if a row breaks the contract."""
    options = tyro.cli(Options, args=words, description=__doc__)
    for name in options.strategies:
        if name not in STRATEGIES:
            raise BadInput("strategies", f"{name!r} has no contract", f"Use some of {', '.join(STRATEGIES)}")
    if not all(1 < count <= 4096 for count in options.devices):
        raise BadInput("devices", f"{min(options.devices)} to {max(options.devices)} devices", "Use 2 to 4096")
    if options.json is not None:
        require_writable("json", str(options.json))
    most = find_target(f"cpu:{max(options.devices)}")
    rows: list[Row] = []
    print("| size | devices | strategy | gathered | reduced | summed | exchanged | state | compiled in |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        for count in options.devices:
            some = dataclasses.replace(most, name=f"cpu:{count}", devices=most.devices[:count])
            for strategy in options.strategies:
                row = measured(size, strategy, some)
                rows.append(row)
                print(_line(row), flush=True)
                if options.json is not None:
                    save_json(str(options.json), [dataclasses.asdict(each) for each in rows])
    return int(any(row.broken for row in rows))


def measured(size: str, strategy: str, target: Target) -> Row:
    """Compiles the step of a network for one strategy, and returns what it communicates and where the state lies."""
    config = umd_b4_in64()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, variant=f"{size}/4"))
    assert config.data.expected is not None
    ((piece,), _), began = pieces(config, config.data.expected, target, (strategy,)), time.monotonic()
    text = piece.program.lower().compile(compiler_options=target.options).as_text() or ""
    moved, axes = traffic(text), piece.built.parts.mesh.shape
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(_state(piece.built).model))

    def ratio(*kinds: str, activations: bool = False) -> float:
        chosen = [one for one in moved.collectives if one.kind in kinds and _of_activations(one, axes) == activations]
        return round(sum(one.total for one in chosen) / weights, 4)

    share, undivided = _held(piece)
    row = Row(
        size,
        strategy,
        len(target.devices),
        *axes.values(),
        gathered=ratio("all-gather") + ratio("all-gather", activations=True),
        reduced=ratio("all-reduce", "reduce-scatter"),
        summed=ratio("all-reduce", "reduce-scatter", activations=True),
        exchanged=moved.bytes("collective-permute") / weights,
        all_to_all=moved.bytes("all-to-all") / weights,
        state_share=round(share, 4),
        undivided=round(undivided, 5),
        exact=moved.exact,
        broken=(),
        compile_seconds=round(time.monotonic() - began, 1),
    )
    return dataclasses.replace(row, broken=tuple(broken_parts(row)))


def _of_activations(one: Collective, axes: Any) -> bool:
    return axes["tensor"] > 1 and one.group == axes["tensor"]


def _state(built: Built) -> Any:
    return jax.tree.map(lambda leaf: leaf if is_shape(leaf) else None, built.abstract_state())


def _held(piece: Piece) -> tuple[float, float]:
    """Returns the part of the state on a device times the number of parts, and what is there beyond the part."""
    layout, axes = piece.built.parts.layout, piece.built.parts.mesh.shape
    leaves = [leaf for leaf in jax.tree.leaves(layout.abstract(_state(piece.built))) if is_shape(leaf)]
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    here = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    parts = axes["fsdp"] * axes["tensor"]
    return here * parts / whole, here / whole - 1 / parts


def broken_parts(row: Row) -> list[str]:
    """Returns the parts of the contract that do not hold for a row, with their values."""
    broken = []
    for name, value, (least, most) in (
        ("gathered", row.gathered, GATHERED[row.strategy]),
        ("reduced", row.reduced, REDUCED[row.strategy]),
        ("exchanged", row.exchanged, (0, EXCHANGED)),
        ("all-to-all", row.all_to_all, (0, 0)),
        ("undivided", row.undivided, (0, UNDIVIDED)),
    ):
        if not least <= value <= most:
            broken.append(f"{name} {value:.3g} is not between {least} and {most}")
    return broken if row.exact else [*broken, "a loop of unknown length"]


def _line(row: Row) -> str:
    cells = [row.size, row.devices, row.strategy]
    cells += [f"{value:.2f}" for value in (row.gathered, row.reduced, row.summed, row.exchanged, row.state_share)]
    line = "| " + " | ".join(map(str, [*cells, f"{row.compile_seconds:.0f} s"])) + " |"
    return line + (f" BROKEN: {'; '.join(row.broken)}" if row.broken else "")


if __name__ == "__main__":
    exit_with(run)
