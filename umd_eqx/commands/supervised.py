"""`experiments/supervised.py`: trains a classifier from scratch with labels."""

from collections.abc import Mapping

from umd_eqx.commands.training import train_preset
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.recipes.supervised import SUPERVISED


def supervised(
    words: list[str], presets: Mapping[str, Preset] = SUPERVISED, types: Mapping[str, type] | None = None
) -> int:
    """Runs the command and returns its exit code.

    The arguments and errors are those of `umd_eqx.commands.training.train_preset`.
    """
    return train_preset(
        words, presets, types, what="Train a classifier from scratch with labels.", prefix="supervised-"
    )
