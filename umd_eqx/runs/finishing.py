"""What is made of a run that is over, as the configuration of its model says."""

from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import numpy as np
from jaxtyping import Float

from umd_eqx.data.source import DataSource
from umd_eqx.eval.averages import mean_over_images
from umd_eqx.models.finished import FinishedRun, PerImage
from umd_eqx.recipes.config import Built
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
    """Lets the configuration of the model make of a run what others use, and says what was written.

    **Arguments:**

    - `built`, `directory`, `step`: of the run, which is at its last step.
    - `splits`: gives its training and its test split.
    - `trained`: gives its newest state, and the step of that.

    **Raises:** `BadInput` and `OSError` as the two do, and where the disk refuses.
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
    # Unlike a tokenizer, it is measured on labelled test images, which a configuration of a model knows nothing of.
    if lacks_classifier(built, directory, step):
        print(f"classifier: {write_classifier(built, directory, *trained(), splits())}")
