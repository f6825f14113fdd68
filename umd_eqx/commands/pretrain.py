"""`experiments/pretrain.py`, and user scripts with their own presets: trains a network from scratch."""

from collections.abc import Mapping

from umd_eqx.commands.training import train_preset
from umd_eqx.recipes.pretrain import PRETRAIN, Preset


def pretrain(
    words: list[str], presets: Mapping[str, Preset] = PRETRAIN, types: Mapping[str, type] | None = None
) -> int:
    """Runs the pre-training command and returns its exit code.

    The arguments and errors are those of `umd_eqx.commands.training.train_preset`.
    """
    return train_preset(words, presets, types, what="Pre-train a masked or diffusion auto-encoder.")
