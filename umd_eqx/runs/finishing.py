"""Writes the artefacts of a finished run, such as a trained tokenizer, as defined by its model's configuration."""

from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import numpy as np
from jaxtyping import Float

from umd_eqx.data.source import DataSource
from umd_eqx.eval.averages import mean_over_images
from umd_eqx.models.finished import FinishedRun, PerImage
from umd_eqx.recipes.build import Built
from umd_eqx.recipes.dump import dump
from umd_eqx.runs.classifier_training import lacks_classifier, write_classifier
from umd_eqx.training.step import TrainState


def finish(
    built: Built,
    directory: Path,
    step: int,
    splits: Callable[[], tuple[DataSource, DataSource]],
    trained: Callable[[], tuple[int, TrainState]],
) -> None:
    """Writes the artefacts of a finished run that other runs use, and prints their paths.

    **Arguments:**

    - `built`, `directory`, `step`: the run, its directory and its last step.
    - `splits`: returns its training and test split.
    - `trained`: returns its newest step and the training state at that step.

    **Raises:** `BadInput` and `OSError` as these functions do, and if writing fails.
    """
    data, model_config = built.config.data, built.config.model

    def model() -> tuple[int, eqx.Module]:
        step, state = trained()
        return step, state.model if state.ema is None else state.ema

    def mean(function: PerImage, model: eqx.Module, images: int) -> Float[np.ndarray, "k"]:
        given = {"batch_size": data.eval_batch_size, "images": images, "mesh": built.parts.mesh}
        return mean_over_images(function, model, splits()[0], data.size, **given)

    facts = {"data": built.spec.name, "size": data.size}
    written = model_config.finish(FinishedRun(directory, step, dump(model_config), facts, model, mean))
    if written is not None:
        print(f"{written.stem}: {written}")
    # Unlike a tokenizer, the classifier is measured on labelled test images, which `FinishedRun` does not provide.
    if lacks_classifier(built, directory, step):
        print(f"classifier: {write_classifier(built, directory, *trained(), splits())}")
