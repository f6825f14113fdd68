"""`experiments/finetune.py`: a pre-trained network learns to generate by class."""

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
    """What is asked for on the command line."""

    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """The run, or the exported safetensors file, to start from. Without a preset the recipe follows it."""
    weights: Weights = "ema"
    """Which weights of a run: raw, or their average (the raw ones where it keeps none)."""


def finetune(
    words: list[str], presets: Mapping[str, Preset] = FINETUNE, types: Mapping[str, type] | None = None
) -> int:
    """Runs the fine-tuning command; gives its exit code.

    The run is kept beside its source, with `-ft` behind its name, if `--run-dir` does not say otherwise. `types` are
    the reader's own, by the names that flags give them.

    **Raises:** `BadInput` where there is no source, a bad one, or one of another network.
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
            raise BadInput("--from", f"{name} starts from nothing", "Leave it out, or take another preset")
        start, source = start_from(path, weights, types.values())
        name, recipe = follow(presets, name if named else None, start, source, types.values())
    what = "Fine-tune a pre-trained network with labels, to generate by class."
    description = describe_presets(what, presets, name)
    default = Finetune(recipe, source=path, weights=weights)
    command = parse(Finetune, flags, with_types(KINDS, types), default=default, description=description)
    if source is None:
        if starts_from_weights(name) and not (command.dry_run or command.print_config):
            raise BadInput("--from", "there is nothing to start from", "Give a run: --from runs/umd")
        return train(command, name, recipe, functools.partial(default_run_dir, name), types.values())
    assert path is not None
    resolved = resolve_fitting(command.config, source)
    del source  # `resolved` gives it to the run, and nobody keeps its weights in memory while others are trained
    beside = finetuned_dir(path)

    def directory_for(config: Config, recipe: Config) -> Path:
        assert recipe.start is not None
        # Named by what differs from the usual: the average, whatever it was.
        usual = dataclasses.replace(recipe, start=dataclasses.replace(recipe.start, weights="ema"))
        return default_run_dir(beside.name, config, usual, parent=beside.parent)

    return train(command, name, recipe, directory_for, types.values(), resolved)


def _peek(flags: list[str]) -> tuple[str | None, Weights]:
    """`--from` and `--weights` alone: the rest can only be understood when they are known."""
    weights = flag_value(flags, "--weights")
    if weights not in (None, "raw", "ema"):
        raise BadInput("--weights", f"{weights!r} is neither", "Use raw or ema")
    return flag_value(flags, "--from"), "raw" if weights == "raw" else "ema"
