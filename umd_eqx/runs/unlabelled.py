"""Runs on images without labels."""

import dataclasses

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.models import ModelConfig
from umd_eqx.objectives import Classification
from umd_eqx.recipes.config import Config


def without_labels(config: Config, spec: DataSpec) -> tuple[Config, list[str]]:
    """Leaves out of a configuration what needs labels, if the data have none.

    **Arguments:** the configuration; the description of its data.

    **Returns:** the configuration without the evaluators that need labels, and without the labels of its network; what
    was left out, in words.

    **Raises:** `BadInput` if it cannot be trained without labels.
    """
    if spec.num_classes:
        return config, []
    if isinstance(config.objective, Classification):
        raise BadInput("data.source.dir", f"{spec.name} has no labels to classify", "Use images with labels")
    left_out = [f"evaluation {name}" for name, evaluator in config.eval.items() if evaluator.needs_labels]
    kept = {name: evaluator for name, evaluator in config.eval.items() if not evaluator.needs_labels}
    model = config.model
    if model.knows_labels:
        if not isinstance(model, ModelConfig):
            raise BadInput("data.source.dir", f"{spec.name} has no labels, as {model.title} needs", "Use other images")
        model, left_out = dataclasses.replace(model, labels=False), [*left_out, "conditioning on labels"]
    return dataclasses.replace(config, model=model, eval=kept), left_out
