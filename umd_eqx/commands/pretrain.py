"""`experiments/pretrain.py`, and every file of a reader's own: a network is trained from the start."""

import functools
from collections.abc import Mapping

from umd_eqx.commands.leaves import KINDS, parse, with_types
from umd_eqx.commands.training import Command, describe_presets, split_preset, train
from umd_eqx.recipes.pretrain import PRETRAIN, Preset
from umd_eqx.runs.workspace import default_run_dir


def pretrain(
    words: list[str], presets: Mapping[str, Preset] = PRETRAIN, types: Mapping[str, type] | None = None
) -> int:
    """Runs the pre-training command; gives its exit code.

    **Arguments:**

    - `words`: of the command line; the first is a preset, if it is not a flag.
    - `presets`: recipes by name; the first is the default.
    - `types`: the reader's own, by the names that flags give them.

    **Raises:** `BadInput` naming the flag at fault.
    """
    types = types or {}
    name, flags = split_preset(presets, words)
    recipe = presets[name]()
    what = "Pre-train a masked or diffusion auto-encoder."
    description = describe_presets(what, presets, name)
    command = parse(Command, flags, with_types(KINDS, types), default=Command(recipe), description=description)
    return train(command, name, recipe, functools.partial(default_run_dir, name), types.values())
