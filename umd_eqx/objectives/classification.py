"""Supervised training: the cross-entropy of labelled images."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Image, Label, Metrics, Scalar
from umd_eqx.models.extractors.classifier import AbstractClassifier
from umd_eqx.objectives.base import AbstractObjective


class Classification(AbstractObjective):
    """The mean over a batch of -log p(label), and `accuracy`, the share of its images whose class is recognised.

    Trains an `AbstractClassifier`. With label smoothing s the target is 1 - s + s / classes for the label and
    s / classes for every other class (Szegedy et al. 2016, section 7). The embedded classifier is trained without it:
    smoothing draws the images of a class together (Mueller et al. 2019, figure 1), and distances are taken between its
    features.
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)
    """Share of the target, in [0, 1), that is spread evenly over all classes."""

    @property
    def denoises(self) -> bool:
        """False: every image is clean."""
        return False

    @property
    def hides(self) -> bool:
        """False: every image is whole."""
        return False

    @property
    def predicts_visible_x0(self) -> bool:
        """False: no image is predicted."""
        return False

    def draw(self, key: PRNGKeyArray, model: AbstractClassifier, path: AbstractPath, shape: tuple[int, ...]) -> None:
        """Returns None: the loss has no randomness."""

    def loss(self, model: AbstractClassifier, path: AbstractPath, batch: Batch, draw: None) -> tuple[Scalar, Metrics]:
        """The mean cross-entropy in nats, and `accuracy` in [0, 1]. The path is not used: nothing is noised."""

        def one(image: Image, label: Label) -> tuple[Scalar, Array]:
            logits = model.logits(image)
            return _cross_entropy(logits, label, self.label_smoothing), jnp.argmax(logits) == label

        losses, recognised = jax.vmap(one)(jnp.asarray(batch.image), jnp.asarray(batch.label))
        return jnp.mean(losses), {"accuracy": jnp.mean(recognised.astype(jnp.float32))}

    def period(self, batch_size: int) -> int:
        """1: every image is treated alike."""
        return 1

    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` for a label smoothing outside [0, 1)."""
        if not 0.0 <= self.label_smoothing < 1.0:
            problem = f"{self.label_smoothing} is outside [0, 1)"
            raise BadInput("--objective.label-smoothing", problem, "Use 0, or a small share such as 0.1")


def _cross_entropy(logits: Float[Array, "classes"], label: Label, smoothing: float) -> Scalar:
    target = optax.losses.smooth_labels(jax.nn.one_hot(label, logits.shape[0], dtype=logits.dtype), smoothing)
    return optax.losses.softmax_cross_entropy(logits, target)
