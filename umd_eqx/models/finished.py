"""The finished run that a model configuration receives, from which it writes artefacts such as a tokenizer."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from umd_eqx.core.types import Image

PerImage = Callable[[Any, Image], Float[Array, "k"]]
"""A function that maps a model and one image to `k` values."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run at its last step.

    - `directory`: the run directory.
    - `step`: the last step.
    - `description`: the configuration of the model as plain data (`umd_eqx.recipes.dump.dump`).
    - `facts`: further facts about the training, as plain data.
    - `model`: returns the step and the trained model, with averaged weights if the run keeps an average. The step is an
      earlier one if the last checkpoint is damaged. Reads a checkpoint if the run had already finished.
    - `mean`: returns the mean of a `PerImage` function over the given number of images, spread over the training split.
    """

    directory: Path
    step: int
    description: Any
    facts: Mapping[str, Any]
    model: Callable[[], tuple[int, eqx.Module]]
    mean: Callable[[PerImage, eqx.Module, int], Float[np.ndarray, "k"]]
