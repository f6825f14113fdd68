"""The finished run that a model configuration receives, from which it writes artefacts such as a tokenizer."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from umd_eqx.core.types import DataSpec, Image, Label

PerImage = Callable[[Any, Image], Float[Array, "k"]]
"""A function that maps a model and one image to `k` values."""

PerExample = Callable[[Any, Image, Label], Float[Array, "k"]]
"""A function that maps a model, one image and its label to `k` values."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run at its last step.

    - `directory`: the run directory.
    - `step`: the last step.
    - `config`: the configuration of the run as plain data (`umd_eqx.recipes.dump.dump`).
    - `preset`, `flags`: the preset of the run, and the flags that turn it into this configuration; None if no flags do.
    - `spec`: the properties of the data.
    - `weights`: which weights `model` returns: the averaged ones if the run keeps an average.
    - `model`: returns the step and the trained model. The step is an earlier one if the last checkpoint is damaged.
      Reads a checkpoint if the run had already finished.
    - `mean`: returns the mean of a `PerImage` function over the given number of images, spread over the training split.
    - `test_mean`: returns the mean of a `PerExample` function over the test split.
    """

    directory: Path
    step: int
    config: Mapping[str, Any]
    preset: str
    flags: tuple[str, ...] | None
    spec: DataSpec
    weights: Literal["raw", "ema"]
    model: Callable[[], tuple[int, eqx.Module]]
    mean: Callable[[PerImage, eqx.Module, int], Float[np.ndarray, "k"]]
    test_mean: Callable[[PerExample, eqx.Module], Float[np.ndarray, "k"]]
