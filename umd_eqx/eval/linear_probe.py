"""The test accuracy of a linear probe."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.core.processes import to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.types import Report
from umd_eqx.eval.base import AbstractEvaluator, EvalContext, Evaluate, evenly_spaced, require
from umd_eqx.eval.features import FeatureSet, extract, extraction_programs
from umd_eqx.models.vit.probes import LinearProbe
from umd_eqx.objectives import LinearProbing

AT_ONCE = 16_384
"""Number of images whose features are held in memory: 100 MB at a width of 768."""


@dataclasses.dataclass(frozen=True)
class ProbeAccuracy(AbstractEvaluator):
    """Top-1 test accuracy of a linear probe in percent: `top1`.

    Features are normalised by their mean and variance over the training images, which are computed by a pass over them
    at each evaluation. Training images are cropped like test images here, at the noise level of the objective.
    """

    every: int = 25_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights to evaluate: raw, or their moving average if the run has one."""
    train_images: int | None = None
    """Number of training images, evenly spaced over the split, for the mean and the variance. None: all."""
    images: int | None = None
    """Number of test images, evenly spaced over the split. None: all."""

    def validate(self, num_patches: int | None = None, field: str = "eval.probe") -> None:
        """Raises `BadInput` if a number of images is below 1."""
        counts = {"train_images": self.train_images, "images": self.images}
        require(self, field, {name: n is None or n >= 1 for name, n in counts.items()}, "Use 1 or more, or None")

    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function of a `LinearProbe`. Images that cannot be read are not counted."""
        self.validate()
        objective = context.objective
        time = objective.time if isinstance(objective, LinearProbing) else 0.0

        def features(
            model: LinearProbe, split: Literal["train", "test"], images: int | None, key: PRNGKeyArray
        ) -> Iterator[tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]]:
            count = len(context.train if split == "train" else context.test)
            indices = evenly_spaced(count if images is None else images, count)
            for start in range(0, len(indices), AT_ONCE):
                some = indices[start : start + AT_ONCE]
                found: FeatureSet = extract(model.backbone, context, split, some, time, key, crop="evaluation")
                yield found.of(model.features), found.labels

        def evaluate(model: LinearProbe, key: PRNGKeyArray) -> Report:
            mean, variance = moments(rows for rows, _ in features(model, "train", self.train_images, key))
            right = total = 0
            for rows, labels in features(model, "test", self.images, key):
                logits = model.logits(*(jnp.asarray(x, jnp.float32) for x in (rows, mean, variance)))
                right += int(np.sum(np.argmax(to_host(logits), axis=1) == labels))
                total += len(labels)
            return Report({"top1": 100.0 * right / total if total else float("nan")}, {})

        return evaluate

    def programs(self, model: LinearProbe, context: EvalContext) -> dict[str, Program]:
        """Returns the encoding and representation of one batch."""
        return extraction_programs(model.backbone, context)

    def display(self, data: str | None = None) -> Display:
        """Returns a chart of the accuracy against the step."""
        chart = Chart("probe", "Linear probe, top-1", r"(?P<line>top1)", "percent")
        return Display(
            (Section("Probe accuracy", (chart,), leading=True),),
            title="linear probe",
            headline=r"(?P<line>top1)",
            headline_text="top-1",
            percent="top1",
            higher="top1",
        )


def moments(parts: Iterator[Float[np.ndarray, "_ d"]]) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Returns the mean and the (biased) variance of each column over all rows of `parts`, in float64.

    The parts are merged as by Chan et al. (1979), without the cancellation of E[x^2] - E[x]^2. Raises `ValueError` if
    there are no rows.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for part in parts:
        rows = part.astype(np.float64)
        if not len(rows):
            continue
        own = rows.mean(axis=0)
        change, both = own - mean, count + len(rows)
        squares = squares + np.sum((rows - own) ** 2, axis=0) + change**2 * (count * len(rows) / both)
        mean, count = mean + change * (len(rows) / both), both
    if not count:
        raise ValueError("no image could be read")
    return mean, squares / count
