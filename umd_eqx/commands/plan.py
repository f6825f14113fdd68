"""`experiments/plan.py`: compiles a preset for devices that are not here, and tells memory, communication and time."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import tyro

from umd_eqx.commands.leaves import KINDS, parse, with_types
from umd_eqx.commands.training import describe_presets, split_preset
from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import PRETRAIN, Preset
from umd_eqx.report import Terminal
from umd_eqx.report.terminal import duration
from umd_eqx.report.textable import text_table
from umd_eqx.runs.dryrun import described
from umd_eqx.runs.memory import STEP
from umd_eqx.runs.planning import Row, compiled, pieces
from umd_eqx.runs.targets import EXAMPLES, Target, find_target
from umd_eqx.training.prediction import ASSUMPTIONS

PRESETS = {**PRETRAIN, **FINETUNE}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The flags of the command."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    target: str = ""
    """Devices to compile for: v4, v5e, v5p or v6e with the shape of a slice of TPUs (v5e:16x16), h100 or a100 with the
    number of GPUs, or of hosts and GPUs (h100:8, h100:4x8), or cpu:N for this machine, with nominal figures."""
    strategy: tuple[str, ...] = ()
    """Divisions to compare: dp (data parallel), fsdp, tp, or products with numbers of devices, such as fsdpxtp2 or
    dp4xfsdp8. Default: dp, fsdp, tp2 and fsdpxtp2, with fsdp8 on more than 8 devices; or --sharding.* if given."""
    parts: Literal["step", "all"] = "step"
    """What to compile: the training step, or also the encoding of images, the evaluators and the sampler."""
    json: str | None = None
    """Write a row for each program and strategy to this JSON file, which grows as they are compiled."""


def plan(words: list[str], presets: Mapping[str, Preset] = PRESETS, types: Mapping[str, type] | None = None) -> int:
    """Runs the command and returns its exit code. `types` are user-defined classes by the names that flags use.

    A program that does not fit in memory is a row of the table, not an error.

    **Raises:** `BadInput` naming the invalid field, or `target` if the packages for it are not installed.
    """
    name, flags = split_preset(presets, words)
    recipe = presets[name]()
    what = "Compile a preset for devices that are not here, and print memory, communication and predicted time."
    description = describe_presets(what, presets, name)
    kinds = with_types(KINDS, types or {})
    command = parse(Plan, flags, kinds, default=Plan(recipe), description=description)
    if not command.target:
        raise BadInput("target", "the devices to compile for are missing", f"Give them, for example {EXAMPLES}")
    if command.json is not None:
        require_writable("json", command.json)
    target = find_target(command.target)
    resolved, config, spec, note = described(command.config, recipe)
    tokenizer = None if resolved.latents is None else resolved.latents.tokenizer
    todo, notes = pieces(config, spec, target, command.strategy or None, command.parts, tokenizer)
    if not todo:
        raise BadInput("strategy", "no strategy suits this network", "; ".join(notes))
    print(f"{name}: {spec.name}{note}, batches of {config.data.batch_size}; {len(target.devices)} x {target.chip.name}")
    rows: list[Row] = []
    with Terminal(len(todo), work="compiling", unit="program") as terminal, disk_errors("", "json", on_retry=""):
        for piece in todo:
            terminal.phase(f"compiling {piece.part} {piece.name} for {piece.strategy}")
            rows.append(compiled(piece, target))
            terminal.update(len(rows), {})
            if command.json is not None:
                save_json(command.json, [dataclasses.asdict(row) | {"preset": name} for row in rows])
    steps = todo[0].built.steps(None)
    print(f"\n{plan_text(rows, steps)}")
    print("\n".join([*notes, *_caveats(rows, target)]))
    return 0


def plan_text(rows: list[Row], steps: int, width: int | None = None) -> str:
    """Returns the rows as a table, with the time of the whole run where it is predicted.

    **Arguments:**

    - `rows`: of one target.
    - `steps`: the number of training steps of the run.
    - `width`: the number of characters of a line; None is that of the terminal.
    """
    head = [
        "program",
        "data x fsdp x tensor",
        "GB per device",
        "fits",
        "moved / parameters",
        "TFLOP",
        "ms",
        "MFU",
        "limit",
    ]
    lines = [_cells(row) for row in rows]
    text = [text_table(head, lines, width)]
    timed = [row for row in rows if row.part == STEP and row.predicted_ms is not None and row.fits]
    if timed:
        best = min(timed, key=lambda row: row.predicted_ms or 0.0)
        seconds = steps * (best.predicted_ms or 0.0) / 1e3
        hours = seconds / 3600 * best.devices
        text.append(f"\n{steps:,} steps with {best.strategy}: {duration(seconds)}, {hours:,.0f} chip-hours")
    return "\n".join(text)


def _cells(row: Row) -> list[str]:
    name = row.strategy if row.part == STEP else f"{row.strategy}: {row.part} {row.program}"
    moved = "-" if row.collective_bytes is None else f"{row.collective_bytes / row.parameter_bytes:.2f}"
    return [
        name,
        f"{row.data} x {row.fsdp} x {row.tensor}",
        f"{row.memory_bytes / 1e9:.2f}",
        "yes" if row.fits else "no",
        moved,
        "-" if row.flops is None else f"{row.flops / 1e12:,.3g}",
        "-" if row.predicted_ms is None else f"{row.predicted_ms:,.3g}",
        "-" if row.predicted_mfu is None else f"{row.predicted_mfu:.1%}",
        row.limit or "-",
    ]


def _caveats(rows: list[Row], target: Target) -> list[str]:
    said = [f"{target.memory / 1e9:.1f} GB of memory can be used on each device. Assumptions of the predicted times:"]
    said += [f"- {assumption}" for assumption in ASSUMPTIONS]
    if target.chip.memory == 0:
        said.append(f"- {target.chip.name}: of no use but for comparing strategies")
    if any(not row.fits for row in rows):
        said.append(
            "What does not fit may with `--optim.accumulate`, `--model.remat full` or a larger `--sharding.fsdp`."
        )
    return said
