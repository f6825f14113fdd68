"""Shared by the training commands: their flags, their presets, and running a configuration."""

import dataclasses
import difflib
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from umd_eqx.commands.leaves import KINDS, parse, with_types
from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.processes import ProcessesConfig, is_first
from umd_eqx.core.remote import require_url
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.report import read_results
from umd_eqx.runs.dryrun import dry_run
from umd_eqx.runs.resolved import Resolved, resolve, with_latents_of
from umd_eqx.runs.run import run
from umd_eqx.runs.workspace import default_run_dir

BOOLEAN_FLAGS = (
    *("--dry-run", "--print-config", "--log.wandb", "--data.flip", "--model.labels", "--model.scan"),
    *("--model.block.rotary", "--model.block.qk-norm"),
    *("--model.network.labels", "--model.network.scan"),
    *("--model.network.block.rotary", "--model.network.block.qk-norm"),
    *("--ema.only-with-labels", "--eval.fewshot.raw-pixels", "--eval.generation.sampler.clip"),
)
"""Flags without a value: the argument that follows one does not belong to it."""


@dataclasses.dataclass(frozen=True)
class Command:
    """The flags of a training command."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: str | None = None
    """Run directory for all output. None: runs/<preset>, with the overrides appended to the name."""
    limit_steps: int | None = None
    """Stop after this step, then evaluate and report. The learning rate schedule keeps its full length."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory, shapes and time, then exit."""
    print_config: bool = False
    """Print the full configuration as JSON, then exit."""
    processes: Annotated[ProcessesConfig, tyro.conf.arg(name="sharding")] = dataclasses.field(
        default_factory=ProcessesConfig
    )
    json: str | None = None
    """Write results.json, with the last value of each metric by its name, to this JSON file at the end of the run."""


def train(
    command: Command,
    preset: str,
    recipe: Config,
    directory_for: Callable[[Config, Config], Path],
    types: Iterable[type] = (),
    resolved: Resolved | None = None,
) -> int:
    """Runs a training command: prints the configuration or its requirements, or trains. Returns the exit code.

    **Arguments:**

    - `command`, `preset`, `recipe`: the parsed flags, and the preset that they override.
    - `directory_for`: maps the configuration and the recipe to a run directory, used without `--run-dir`.
    - `types`: user-defined classes that the run providing the initial weights may contain.
    - `resolved`: `command.config` with its references resolved, if that was done already.
    """
    if command.config.checkpoint.mirror is not None:  # which is printed and recorded
        require_url("checkpoint.mirror", command.config.checkpoint.mirror)
    if command.print_config:
        print(json.dumps(dump(command.config), indent=2))
        return 0
    if command.dry_run:
        print(dry_run(resolved or command.config, recipe=recipe, limit_steps=command.limit_steps))
        return 0
    if command.json is not None:
        require_writable("json", command.json)
    resolved = resolve(command.config, recipe=recipe) if resolved is None else resolved
    config = resolved.config
    directory = command.run_dir or directory_for(config, with_latents_of(recipe, config))
    options = {"run_dir": directory, "limit_steps": command.limit_steps}
    with disk_errors(directory):
        outcome = run(resolved, preset=preset, recipe=recipe, types=types, **options)
        if command.json is not None and is_first():
            found = read_results(outcome.run_dir) or {}
            save_json(command.json, [{**found, "preset": preset, "run_dir": str(outcome.run_dir), **outcome.last}])
    return outcome.exit_code


def train_preset(
    words: list[str],
    presets: Mapping[str, Preset],
    types: Mapping[str, type] | None,
    *,
    what: str,
    prefix: str = "",
) -> int:
    """Parses the flags over a preset, and trains from scratch. Returns the exit code.

    **Arguments:**

    - `words`: the command-line arguments; the first is a preset unless it is a flag.
    - `presets`: recipes by name; the first is the default.
    - `types`: user-defined classes by the names that flags use.
    - `what`: the first sentence of `--help`.
    - `prefix`: precedes the preset in the name of the default run directory.

    **Raises:** `BadInput` naming the invalid field.
    """
    types = types or {}
    name, flags = split_preset(presets, words)
    recipe = presets[name]()
    description = describe_presets(what, presets, name)
    command = parse(Command, flags, with_types(KINDS, types), default=Command(recipe), description=description)
    directory_for = functools.partial(default_run_dir, f"{prefix}{name}")
    return train(command, name, recipe, directory_for, types.values())


def split_preset(presets: Mapping[str, Preset], arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Splits the arguments into the preset (the first argument, or else the first preset) and the flags.

    Raises `BadInput` for an unknown preset, and for a preset that comes after a flag.
    """
    name, flags = next(iter(presets)), list(arguments)
    if flags and not flags[0].startswith("-"):
        name, flags = flags[0], flags[1:]
        if name not in presets:
            close = difflib.get_close_matches(name, presets, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise BadInput("preset", f"there is no {name!r}", f"{hint}Choose one of: {', '.join(presets)}")
    for before, word in zip(["", *flags], flags, strict=False):
        before = before.replace("--no-", "--").replace(".no-", ".")
        if word in presets and (not before.startswith("--") or before in BOOLEAN_FLAGS or "=" in before):
            raise BadInput("preset", f"{word!r} comes after a flag", f"Write the preset first: {word} --flag VALUE ...")
    return name, flags


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag among unparsed command-line arguments; None if the flag is absent."""
    found = None
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else next(iter(words[i + 1 : i + 2]), None)
    return found


def describe_presets(what: str, presets: Mapping[str, Preset], chosen: str) -> str:
    """The first part of `--help`: what the command does, and one line per preset."""
    width = max(map(len, presets)) + 2
    lines = [f"{'*' if name == chosen else ' '} {name:{width}}{_first_line(p)}" for name, p in presets.items()]
    return "\n".join([f"{what} The first argument is a preset (* marks the one shown here):\n", *lines])


def _first_line(preset: Preset) -> str:
    return (inspect.getdoc(preset) or "").partition("\n")[0]
