"""`experiments/supervised.py`: trains a classifier from scratch with labels."""

import functools
from collections.abc import Mapping

from umd_eqx.commands.leaves import KINDS, parse, with_types
from umd_eqx.commands.training import Command, describe_presets, split_preset, train
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.recipes.supervised import SUPERVISED
from umd_eqx.runs.workspace import default_run_dir


def supervised(
    words: list[str], presets: Mapping[str, Preset] = SUPERVISED, types: Mapping[str, type] | None = None
) -> int:
    """Runs the command and returns its exit code.

    **Arguments:**

    - `words`: the command-line arguments; the first is a preset unless it is a flag.
    - `presets`: recipes by name; the first is the default.
    - `types`: user-defined classes by the names that flags use.

    **Raises:** `BadInput` naming the invalid flag.
    """
    types = types or {}
    name, flags = split_preset(presets, words)
    recipe = presets[name]()
    description = describe_presets("Train a classifier from scratch with labels.", presets, name)
    command = parse(Command, flags, with_types(KINDS, types), default=Command(recipe), description=description)
    directory_for = functools.partial(default_run_dir, f"supervised-{name}")
    return train(command, name, recipe, directory_for, types.values())
