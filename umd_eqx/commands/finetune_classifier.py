"""`experiments/finetune_classifier.py`: fine-tunes a pre-trained network into a classifier."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import tyro

from umd_eqx.commands.on_network import train_on_network
from umd_eqx.commands.training import Command
from umd_eqx.recipes.finetune_classifier import FINETUNE_CLASSIFIER
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.pretrained import Weights


@dataclasses.dataclass(frozen=True)
class FinetuneClassifier(Command):
    """The flags of fine-tuning a classifier."""

    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Run directory or exported safetensors file to start from."""
    weights: Weights = "ema"
    """Weights of the run to start from: raw, or ema for their moving average (raw if the run keeps none)."""


def finetune_classifier(
    words: list[str], presets: Mapping[str, Preset] = FINETUNE_CLASSIFIER, types: Mapping[str, type] | None = None
) -> int:
    """Runs the command and returns its exit code.

    By default the run directory lies beside the run that it starts from, with `-classifier` appended to the name.
    `types` are user-defined classes that this run may contain.

    **Raises:** `BadInput` if the run is missing, cannot be read, or does not fit the recipe.
    """
    return train_on_network(
        words,
        presets,
        types or {},
        flags_of=FinetuneClassifier,
        flag="from",
        usual="ema",
        suffix="-classifier",
        what="Fine-tune a pre-trained network into a classifier (--from).",
    )
