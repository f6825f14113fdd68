"""`experiments/linear_probe.py`: a linear probe of a trained network on all labelled training images."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import tyro

from umd_eqx.commands.on_network import train_on_network
from umd_eqx.commands.training import Command
from umd_eqx.recipes.linear_probe import LINEAR_PROBES
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.pretrained import Weights


@dataclasses.dataclass(frozen=True)
class LinearProbeCommand(Command):
    """The flags of the linear probe."""

    source: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Run directory or exported safetensors file to probe."""
    weights: Weights = "raw"
    """Weights of the run to probe: raw, as in the few-shot probe, or ema for their moving average."""


def linear_probe(
    words: list[str], presets: Mapping[str, Preset] = LINEAR_PROBES, types: Mapping[str, type] | None = None
) -> int:
    """Runs the command and returns its exit code.

    By default the run directory lies beside the probed run, with `-lp` appended to the name. `types` are user-defined
    classes that the probed run may contain.

    **Raises:** `BadInput` if the run is missing, cannot be read, or does not fit the recipe.
    """
    return train_on_network(
        words,
        presets,
        types or {},
        flags_of=LinearProbeCommand,
        flag="run",
        usual="raw",
        suffix="-lp",
        what="Train a linear classifier on the frozen features of a network (--run).",
    )
