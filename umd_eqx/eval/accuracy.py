"""The test accuracy of a classifier."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.core.processes import to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import chunked_vmap
from umd_eqx.core.types import Image, Report
from umd_eqx.eval.base import AbstractEvaluator, EvalContext, Evaluate, evenly_spaced, require
from umd_eqx.models.extractors.classifier import AbstractClassifier
from umd_eqx.models.tokenizers.base import AbstractTokenizer


@dataclasses.dataclass(frozen=True)
class Accuracy(AbstractEvaluator):
    """Test accuracy: `recognised`, the fraction of test images whose most probable class is their label, in [0, 1]."""

    every: int = 25_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "ema"
    """Which weights to evaluate: raw, or their moving average if the run has one."""
    images: int | None = None
    """Number of test images, evenly spaced over the split. None: all."""

    @property
    def needs_labels(self) -> bool:
        """Always True: predictions are compared with labels."""
        return True

    def validate(self, num_patches: int | None = None, field: str = "eval.accuracy") -> None:
        """Raises `BadInput` if `images` is below 1."""
        require(self, field, {"images": self.images is None or self.images >= 1}, "Use 1 or more, or None")

    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function of an `AbstractClassifier`. Images that cannot be read are not counted."""
        self.validate()
        count = len(context.test)
        indices = evenly_spaced(count if self.images is None else self.images, count)

        def evaluate(model: AbstractClassifier, key: PRNGKeyArray) -> Report:
            right = total = 0
            for batch in context.images("test", indices):
                images, labels = jnp.asarray(batch.image), jnp.asarray(batch.label)
                found = _recognised(model, context.tokenizer_or_identity, images, labels, context.mesh)
                found, valid = to_host((found, batch.valid))
                right += int(np.sum(found & valid))
                total += int(np.sum(valid))
            return Report({"recognised": right / total if total else float("nan")}, {})

        return evaluate

    def display(self, data: str | None = None) -> Display:
        """Returns a chart of the accuracy against the step."""
        chart = Chart("accuracy", "Test images classified correctly", r"(?P<line>recognised)", "share")
        return Display((Section("Test accuracy", (chart,), leading=True),), higher="recognised")

    def programs(self, model: AbstractClassifier, context: EvalContext) -> dict[str, Program]:
        """Returns the classification of one batch."""
        given = (context.image_shapes, context.label_shapes, context.mesh)
        return {"recognise": Program(_recognised, (model, context.tokenizer_or_identity, *given))}


@eqx.filter_jit
def _recognised(
    model: AbstractClassifier,
    tokenizer: AbstractTokenizer,
    images: Float[Array, "b h w c"],
    labels: Int[Array, "b"],
    mesh: Mesh,
) -> Bool[Array, "b"]:
    def one(given: tuple[Image, Int[Array, ""]]) -> Bool[Array, ""]:
        image, label = given
        return jnp.argmax(model.logits(tokenizer.encode(image).mode())) == label

    return chunked_vmap(one, (images, labels), mesh)
