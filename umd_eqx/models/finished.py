"""What the configuration of a model is given of a run that is over, to make of it what others use."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from umd_eqx.core.types import Image

PerImage = Callable[[Any, Image], Float[Array, "k"]]
"""Some numbers of a model and one image."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run at its last step.

    - `directory`: of the run; `step`: its last.
    - `description`: the configuration of the model as plain data (`umd_eqx.recipes.dump.dump`).
    - `facts`: what is known of the training besides, as plain data.
    - `model`: gives the trained model, the average of its weights where one is kept, and its step, which is an earlier
      one where the last checkpoint is damaged. Reads a checkpoint where the run was finished before.
    - `mean`: the mean of a function of the model and an image over so many images, spread over the training split.
    """

    directory: Path
    step: int
    description: Any
    facts: Mapping[str, Any]
    model: Callable[[], tuple[int, eqx.Module]]
    mean: Callable[[PerImage, eqx.Module, int], Float[np.ndarray, "k"]]
