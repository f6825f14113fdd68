"""Writes the artefacts of a finished run, such as a trained tokenizer, as defined by its model's configuration."""

from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from umd_eqx.core.sharding import place, replicated
from umd_eqx.data.source import DataSource
from umd_eqx.eval.averages import mean_over_examples, mean_over_images
from umd_eqx.models.finished import FinishedRun, PerExample, PerImage
from umd_eqx.recipes.build import Built
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump, flags_of
from umd_eqx.training.step import TrainState


def finish(
    built: Built,
    directory: Path,
    step: int,
    preset: str,
    recipe: Config,
    splits: Callable[[], tuple[DataSource, DataSource]],
    trained: Callable[[], tuple[int, TrainState]],
) -> None:
    """Writes the artefacts of a finished run that other runs use, and prints their paths.

    **Arguments:**

    - `built`, `directory`, `step`: the run, its directory and its last step.
    - `preset`, `recipe`: the preset that it was derived from.
    - `splits`: returns its training and test split.
    - `trained`: returns its newest step and the training state at that step.

    **Raises:** `BadInput` and `OSError` as the model's configuration does, and if writing fails.
    """
    config, data = built.config, built.config.data
    given = {"batch_size": data.eval_batch_size, "mesh": built.parts.mesh}

    def model() -> tuple[int, eqx.Module]:
        step, state = trained()
        found = state.model if state.ema is None else state.ema
        return step, found if jax.process_count() == 1 else place(found, replicated(built.parts.mesh))

    def mean(function: PerImage, model: eqx.Module, images: int) -> Float[np.ndarray, "k"]:
        return mean_over_images(function, model, splits()[0], data.size, images=images, **given)

    def test_mean(function: PerExample, model: eqx.Module) -> Float[np.ndarray, "k"]:
        test = splits()[1]
        return mean_over_examples(function, model, test, data.size, images=len(test), **given)

    run = FinishedRun(
        directory,
        step,
        config=dump(config),
        preset=preset,
        flags=flags_of(recipe, config),
        spec=built.spec,
        weights="raw" if built.abstract_state().ema is None else "ema",
        model=model,
        mean=mean,
        test_mean=test_mean,
    )
    written = config.model.finish(run)
    if written is not None:
        print(f"{written.stem}: {written}")
