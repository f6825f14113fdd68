"""Supervised training with the cross-entropy of labelled images."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Image, Label, Metrics, Scalar
from umd_eqx.models.extractors.classifier import AbstractClassifier
from umd_eqx.objectives.base import AbstractCleanObjective


class Classification(AbstractCleanObjective):
    """The mean of -log p(label) over a batch, and `accuracy`, the share of its images that are classified correctly.

    Trains an `AbstractClassifier`. With label smoothing s the target is 1 - s + s / classes for the label and
    s / classes for every other class (Szegedy et al. 2016, section 7). The embedded classifier is trained without it:
    distances are measured between its features, and smoothing contracts the features of each class (Mueller et al.
    2019, figure 1).
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)
    """Share of the target distribution, in [0, 1), that is spread evenly over all classes."""

    def draw(self, key: PRNGKeyArray, model: AbstractClassifier, path: AbstractPath, shape: tuple[int, ...]) -> None:
        """Returns None, as the loss is deterministic."""

    def loss(self, model: AbstractClassifier, path: AbstractPath, batch: Batch, draw: None) -> tuple[Scalar, Metrics]:
        """Returns the mean cross-entropy in nats, and `accuracy` in [0, 1]. `path` is unused: images are clean."""

        def one(image: Image, label: Label) -> tuple[Scalar, Array]:
            logits = model.logits(image)
            return _cross_entropy(logits, label, self.label_smoothing), jnp.argmax(logits) == label

        losses, recognised = jax.vmap(one)(jnp.asarray(batch.image), jnp.asarray(batch.label))
        return jnp.mean(losses), {"accuracy": jnp.mean(recognised.astype(jnp.float32))}

    def require_suitable(self, model: Any, path: AbstractPath) -> None:
        """Raises `BadInput` naming `model` unless it is an `AbstractClassifier`."""
        if not isinstance(model, AbstractClassifier):
            problem = f"{type(model).__name__} does not classify images"
            raise BadInput("model", problem, "Use an AbstractClassifier, or another objective")

    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` for a label smoothing outside [0, 1)."""
        if not 0.0 <= self.label_smoothing < 1.0:
            problem = f"{self.label_smoothing} is outside [0, 1)"
            raise BadInput("objective.label_smoothing", problem, "Use 0, or a small share such as 0.1")


def _cross_entropy(logits: Float[Array, "classes"], label: Label, smoothing: float) -> Scalar:
    target = optax.losses.smooth_labels(jax.nn.one_hot(label, logits.shape[0], dtype=logits.dtype), smoothing)
    return optax.losses.softmax_cross_entropy(logits, target)
