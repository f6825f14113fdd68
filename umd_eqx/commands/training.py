"""What the commands that train have in common: their flags, their presets, and what they do with a configuration."""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.dryrun import dry_run
from umd_eqx.runs.resolved import Resolved, resolve, with_latents_of
from umd_eqx.runs.run import run

SWITCHES = (
    *("--dry-run", "--print-config", "--log.wandb", "--data.flip", "--model.labels", "--model.scan"),
    *("--model.block.rotary", "--model.block.qk-norm"),
    *("--ema.only-with-labels", "--eval.fewshot.raw-pixels", "--eval.generation.sampler.clip"),
)
"""Flags that take no value, so that a word behind one is not theirs."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What is asked for on the command line."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: str | None = None
    """Where everything is written. None: runs/<preset>, with what was changed of the recipe."""
    limit_steps: int | None = None
    """Stop after this step, measure and report; the learning rate goes by the whole length all the same."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory, shapes and time, and exit."""
    print_config: bool = False
    """Print the whole configuration as JSON, and exit."""
    json: str | None = None
    """A file for the last figures of each kind, when the run is over."""


def train(
    command: Command,
    preset: str,
    recipe: Config,
    directory_for: Callable[[Config, Config], Path],
    types: Iterable[type] = (),
    resolved: Resolved | None = None,
) -> int:
    """Does what is asked for: shows the configuration or what it takes, or runs it. Gives the exit code.

    `directory_for` gives the run's directory, if the command names none, from the configuration and the recipe. `types`
    are the reader's own, of which the run that the first weights come from may be made. `resolved` is what
    `command.config` names, where that was resolved already.
    """
    if command.print_config:
        print(json.dumps(dump(command.config), indent=2))
        return 0
    if command.dry_run:
        print(dry_run(resolved or command.config, recipe=recipe, limit_steps=command.limit_steps))
        return 0
    if command.json is not None:
        require_writable("--json", command.json)
    resolved = resolve(command.config) if resolved is None else resolved
    config = resolved.config
    directory = command.run_dir or directory_for(config, with_latents_of(recipe, config))
    options = {"run_dir": directory, "limit_steps": command.limit_steps}
    with disk_errors(directory):
        outcome = run(resolved, preset=preset, recipe=recipe, types=types, **options)
        if command.json is not None:
            save_json(command.json, [{"preset": preset, "run_dir": str(outcome.run_dir), **outcome.last}])
    return outcome.exit_code


def split_preset(presets: Mapping[str, Preset], arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The preset (the first word, or else the first preset) and the flags.

    Raises `BadInput` for a word that is no preset, and for a preset that comes after a flag.
    """
    name, flags = next(iter(presets)), list(arguments)
    if flags and not flags[0].startswith("-"):
        name, flags = flags[0], flags[1:]
        if name not in presets:
            close = difflib.get_close_matches(name, presets, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise BadInput("preset", f"there is no {name!r}", f"{hint}There are: {', '.join(presets)}")
    for before, word in zip(["", *flags], flags, strict=False):
        before = before.replace("--no-", "--").replace(".no-", ".")
        if word in presets and (not before.startswith("--") or before in SWITCHES or "=" in before):
            raise BadInput("preset", f"{word!r} comes after a flag", f"Write the preset first: {word} --flag VALUE ...")
    return name, flags


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """What a flag is given as among the words of a command line, before they are parsed; None where it is not there."""
    found = None
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else next(iter(words[i + 1 : i + 2]), None)
    return found


def describe_presets(what: str, presets: Mapping[str, Preset], chosen: str) -> str:
    """What `--help` begins with: what the command does, and a line for each preset."""
    width = max(map(len, presets)) + 2
    lines = [f"{'*' if name == chosen else ' '} {name:{width}}{_first_line(p)}" for name, p in presets.items()]
    return "\n".join([f"{what} The first word is a preset (* is the one shown here):\n", *lines])


def _first_line(preset: Preset) -> str:
    return (inspect.getdoc(preset) or "").partition("\n")[0]
