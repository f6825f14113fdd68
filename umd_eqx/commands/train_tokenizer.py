"""`experiments/train_tokenizer.py`: what makes latents of images, trained and written for other runs to use."""

import functools
from collections.abc import Mapping

from umd_eqx.commands.leaves import KINDS, parse
from umd_eqx.commands.training import Command, describe_presets, split_preset, train
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.recipes.tokenizers import TOKENIZERS
from umd_eqx.runs.workspace import default_run_dir


def train_tokenizer(words: list[str], presets: Mapping[str, Preset] = TOKENIZERS) -> int:
    """Runs the command; gives its exit code.

    When the run is over, the tokenizer lies in the run directory as `tokenizer.safetensors`: `--tokenizer` of the other
    commands takes the directory.

    **Raises:** `BadInput` naming the flag at fault.
    """
    name, flags = split_preset(presets, words)
    recipe = presets[name]()
    what = "Train a tokenizer, which makes latents of images."
    description = describe_presets(what, presets, name)
    command = parse(Command, flags, KINDS, default=Command(recipe), description=description)
    return train(command, name, recipe, functools.partial(default_run_dir, name))
