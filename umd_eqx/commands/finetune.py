"""`experiments/finetune.py`: fine-tunes a pre-trained network for class-conditional generation."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro

from umd_eqx.commands.leaves import KINDS, parse, with_types
from umd_eqx.commands.training import Command, describe_presets, flag_value, split_preset, train
from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.finetune import FINETUNE, starts_from_weights
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.finetuning import finetuned_dir, follow, resolve_fitting, start_from
from umd_eqx.runs.pretrained import Weights
from umd_eqx.runs.workspace import default_run_dir


@dataclasses.dataclass(frozen=True)
class Finetune(Command):
    """The flags of the fine-tuning command."""

    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Run directory or exported safetensors file to start from. Without a preset, it determines the recipe."""
    weights: Weights = "ema"
    """Weights of the run to start from: raw, or ema for their moving average (raw if the run keeps none)."""


def finetune(
    words: list[str], presets: Mapping[str, Preset] = FINETUNE, types: Mapping[str, type] | None = None
) -> int:
    """Runs the fine-tuning command and returns its exit code.

    By default the run directory lies beside its source, with `-ft` appended to the name; `--run-dir` overrides it.
    `types` are user-defined classes by the names that flags use.

    **Raises:** `BadInput` if the source is missing, cannot be read, or holds a network that does not fit the recipe.
    """
    types = types or {}
    named = bool(words) and not words[0].startswith("-")
    name, flags = split_preset(presets, words)
    path, weights = _peek(flags)
    source = None
    if path is None:
        recipe = presets[name]()
    else:
        if named and not starts_from_weights(name):
            raise BadInput("from", f"{name} is trained from scratch", "Omit `from`, or choose another preset")
        start, source = start_from(path, weights, types.values())
        name, recipe = follow(presets, name if named else None, start, source, types.values())
    what = "Fine-tune a pre-trained network with labels, for class-conditional generation."
    description = describe_presets(what, presets, name)
    default = Finetune(recipe, source=path, weights=weights)
    command = parse(Finetune, flags, with_types(KINDS, types), default=default, description=description)
    if source is None:
        if starts_from_weights(name) and not (command.dry_run or command.print_config):
            raise BadInput("from", "the weights to start from are missing", "Pass a run, such as `from=runs/umd`")
        return train(command, name, recipe, functools.partial(default_run_dir, name), types.values())
    assert path is not None
    resolved = resolve_fitting(command.config, source, recipe)
    del source  # `resolved` hands it to the run, and no other reference keeps its weights in memory during training
    beside = finetuned_dir(path)

    def directory_for(config: Config, recipe: Config) -> Path:
        assert recipe.start is not None
        # Names list only what differs from the default weights, which are the average.
        usual = dataclasses.replace(recipe, start=dataclasses.replace(recipe.start, weights="ema"))
        return default_run_dir(beside.name, config, usual, parent=beside.parent)

    return train(command, name, recipe, directory_for, types.values(), resolved)


def _peek(flags: list[str]) -> tuple[str | None, Weights]:
    """Returns `--from` and `--weights`, which determine how the other flags are parsed."""
    weights = flag_value(flags, "--weights")
    if weights not in (None, "raw", "ema"):
        raise BadInput("weights", f"{weights!r} is not a kind of weights", "Use raw or ema")
    return flag_value(flags, "--from"), "raw" if weights == "raw" else "ema"
