"""Configurations fitted to their data: what needs labels is left out for images without labels."""

import dataclasses
from collections.abc import Callable

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.models import ModelConfig
from umd_eqx.recipes.config import Config
from umd_eqx.runs.resolved import Resolved


def fit_to_data(resolved: Resolved, notify: Callable[[str], None] = print) -> Resolved:
    """Returns a resolved configuration as it is trained: identified (`Resolved.identified`), and `without_labels`.

    `notify` is told what is left out. Raises `BadInput` as these do.
    """
    spec = resolved.data.spec
    config, left_out = without_labels(resolved.config, spec)
    if left_out:
        notify(f"note: {spec.name} has no labels, so there is no {' and '.join(left_out)}")
    return dataclasses.replace(resolved, config=config).identified()


def without_labels(config: Config, spec: DataSpec) -> tuple[Config, list[str]]:
    """Leaves out of a configuration what needs labels, if the data have none.

    **Arguments:** the configuration; the description of its data.

    **Returns:** the configuration without the evaluators that need labels, and without the labels of its network; what
    was left out, in words.

    **Raises:** `BadInput` if it cannot be trained without labels.
    """
    if spec.num_classes:
        return config, []
    if config.objective.needs_labels:
        raise BadInput("data.source.dir", f"{spec.name} has no labels to classify", "Use images with labels")
    left_out = [f"evaluation {name}" for name, evaluator in config.eval.items() if evaluator.needs_labels]
    kept = {name: evaluator for name, evaluator in config.eval.items() if not evaluator.needs_labels}
    model = config.model
    if model.class_conditional:
        if not isinstance(model, ModelConfig):
            raise BadInput("data.source.dir", f"{spec.name} has no labels, as {model.title} needs", "Use other images")
        model, left_out = dataclasses.replace(model, labels=False), [*left_out, "conditioning on labels"]
    return dataclasses.replace(config, model=model, eval=kept), left_out
