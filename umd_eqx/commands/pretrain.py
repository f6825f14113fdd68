"""`experiments/pretrain.py`, and user scripts with their own presets: trains a network from scratch."""

import functools
from collections.abc import Mapping

from umd_eqx.commands.leaves import KINDS, parse, with_types
from umd_eqx.commands.training import Command, describe_presets, split_preset, train
from umd_eqx.recipes.pretrain import PRETRAIN, Preset
from umd_eqx.runs.workspace import default_run_dir


def pretrain(
    words: list[str], presets: Mapping[str, Preset] = PRETRAIN, types: Mapping[str, type] | None = None
) -> int:
    """Runs the pre-training command and returns its exit code.

    **Arguments:**

    - `words`: the command-line arguments; the first is a preset unless it is a flag.
    - `presets`: recipes by name; the first is the default.
    - `types`: user-defined classes by the names that flags use.

    **Raises:** `BadInput` naming the invalid flag.
    """
    types = types or {}
    name, flags = split_preset(presets, words)
    recipe = presets[name]()
    what = "Pre-train a masked or diffusion auto-encoder."
    description = describe_presets(what, presets, name)
    command = parse(Command, flags, with_types(KINDS, types), default=Command(recipe), description=description)
    return train(command, name, recipe, functools.partial(default_run_dir, name), types.values())
