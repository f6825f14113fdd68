"""`experiments/train_tokenizer.py`: trains a tokenizer, which encodes images into latents for other runs."""

import functools
from collections.abc import Mapping

from umd_eqx.commands.leaves import KINDS, parse
from umd_eqx.commands.training import Command, describe_presets, split_preset, train
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.recipes.tokenizers import TOKENIZERS
from umd_eqx.runs.workspace import default_run_dir


def train_tokenizer(words: list[str], presets: Mapping[str, Preset] = TOKENIZERS) -> int:
    """Runs the command and returns its exit code.

    A finished run writes the tokenizer to `tokenizer.safetensors` in its directory; `--tokenizer` of the other commands
    accepts that directory.

    **Raises:** `BadInput` naming the invalid flag.
    """
    name, flags = split_preset(presets, words)
    recipe = presets[name]()
    what = "Train a tokenizer, which encodes images into latents."
    description = describe_presets(what, presets, name)
    command = parse(Command, flags, KINDS, default=Command(recipe), description=description)
    return train(command, name, recipe, functools.partial(default_run_dir, name))
