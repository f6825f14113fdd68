"""Shared by the commands that train a classifier on the network of another run."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from umd_eqx.commands.leaves import KINDS, parse, with_types
from umd_eqx.commands.training import Command, describe_presets, flag_value, split_preset, train
from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.finetuning import finetuned_dir, start_from
from umd_eqx.runs.on_network import recipe_on, resolve_on
from umd_eqx.runs.pretrained import Weights
from umd_eqx.runs.workspace import default_run_dir


def train_on_network(
    words: list[str],
    presets: Mapping[str, Preset],
    types: Mapping[str, type],
    *,
    flags_of: Callable[..., Command],
    flag: str,
    usual: Weights,
    suffix: str,
    what: str,
) -> int:
    """Parses the flags, and trains a classifier on the network that `flag` names. Returns the exit code.

    **Arguments:**

    - `words`: the command-line arguments; the first is a preset unless it is a flag.
    - `presets`: recipes by name. Without a preset, the data of the network's run select one.
    - `types`: user-defined classes that the network's run may contain.
    - `flags_of`: the dataclass of the flags, with `source` and `weights` in addition to those of `Command`.
    - `flag`: the flag of the field `source`, without dashes.
    - `usual`: the default of `weights`.
    - `suffix`: appended to the name of the network's run for the default run directory, which lies beside it.
    - `what`: the first sentence of `--help`.

    **Raises:** `BadInput` if the network is missing, cannot be read, or does not fit the recipe.
    """
    named = bool(words) and not words[0].startswith("-")
    name, flags = split_preset(presets, words)
    path, weights = flag_value(flags, f"--{flag}"), flag_value(flags, "--weights") or usual
    if weights not in ("raw", "ema"):
        raise BadInput("weights", f"{weights!r} is not a kind of weights", "Use raw or ema")
    weights = "raw" if weights == "raw" else "ema"
    recipe, source = presets[name](), None
    with _named(flag):
        if path is not None:
            start, source = start_from(path, weights, types.values())
            name, recipe = recipe_on(presets, name if named else None, start, source)
        default, kinds = flags_of(recipe, source=path, weights=weights), with_types(KINDS, types)
        command = parse(type(default), flags, kinds, default=default, description=describe_presets(what, presets, name))
        if source is None or path is None:
            if not (command.dry_run or command.print_config):
                raise BadInput(flag, "the network is missing", f"Pass a run, such as `{flag}=runs/umd`")
            return train(command, name, recipe, functools.partial(default_run_dir, name), types.values())
        resolved = resolve_on(command.config, source)
        del source  # `resolved` hands it to the run, and no other reference keeps its weights in memory during training
        beside = finetuned_dir(path, suffix)

        def directory_for(config: Config, recipe: Config) -> Path:
            assert recipe.start is not None
            # Names list only what differs from the default weights.
            by_default = dataclasses.replace(recipe, start=dataclasses.replace(recipe.start, weights=usual))
            return default_run_dir(beside.name, config, by_default, parent=beside.parent)

        return train(command, name, recipe, directory_for, types.values(), resolved)


@contextlib.contextmanager
def _named(flag: str) -> Iterator[None]:
    """A context that names the source of the weights by this flag; everywhere else it is `from`."""
    try:
        yield
    except BadInput as error:
        if error.field != "from":
            raise
        raise BadInput(flag, error.problem, error.hint) from error
