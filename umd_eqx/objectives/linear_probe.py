"""The cross-entropy of a linear classifier on batch-normalised features of a frozen network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Image, Metrics, Scalar
from umd_eqx.models.vit.probes import LinearProbe
from umd_eqx.objectives.base import AbstractCleanObjective


class LinearProbing(AbstractCleanObjective):
    """The mean of -log p(label) over a batch, and `accuracy`, the share of its images that are classified correctly.

    Trains the head of a `LinearProbe`. Features are normalised by their mean and (biased) variance over the batch, as
    by batch normalisation in training. The loss of an image therefore depends on its batch, which cannot be split into
    micro-batches.
    """

    time: float = eqx.field(static=True, default=0.0)
    """Noise level of the images, from 0 (clean) to 1. The published few-shot probe uses 0.051 for networks that are
    not trained on clean images."""

    @property
    def needs_labels(self) -> bool:
        """Always True: the labels are the targets."""
        return True

    def draw(
        self, key: PRNGKeyArray, model: LinearProbe, path: AbstractPath, shape: tuple[int, ...]
    ) -> Float[Array, "b h w c"] | None:
        """Draws the noise of each image; None if the images are clean."""
        return jax.random.normal(key, shape, jnp.float32) if self.time > 0 else None

    def loss(
        self, model: LinearProbe, path: AbstractPath, batch: Batch, draw: Float[Array, "b h w c"] | None
    ) -> tuple[Scalar, Metrics]:
        """Returns the mean cross-entropy in nats, and `accuracy` in [0, 1]."""
        t = jnp.asarray(self.time, jnp.float32)

        def represent(image: Image, eps: Image | None) -> Float[Array, "d"]:
            x_t = image if eps is None else path.interpolate(image, eps, t)
            return model.represent(x_t, path.network_time(t))

        features = jax.vmap(represent)(jnp.asarray(batch.image), draw)
        logits = model.logits(features, jnp.mean(features, axis=0), jnp.var(features, axis=0))
        label = jnp.asarray(batch.label)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
        accuracy = jnp.mean((jnp.argmax(logits, axis=1) == label).astype(jnp.float32))
        return jnp.mean(losses), {"accuracy": accuracy}

    def period(self, batch_size: int) -> int:
        """The whole batch, which has one mean and one variance: gradient accumulation is not possible."""
        return batch_size

    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` for a time outside [0, 1], and for a batch of one image, which has no variance."""
        if not 0.0 <= self.time <= 1.0:
            raise BadInput("objective.time", f"{self.time} is outside [0, 1]", "Use 0 for clean images")
        if batch_size < 2:
            problem = "the features of a single image cannot be normalised over the batch"
            raise BadInput("data.batch_size", problem, "Use 2 or more; the published value is 4096")
