"""The objective of a tokenizer: reconstruction of the image from a regularised latent."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Image, Metrics, Scalar
from umd_eqx.models.extractors.fashion import load_fashion_classifier
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.objectives.base import AbstractCleanObjective


class Tokenizing(AbstractCleanObjective):
    """The mean squared error of the reconstruction, and two optional terms (Rombach et al. 2022, appendix G).

    `kl` is the KL divergence of the posterior of the latent from N(0, 1), in nats per element of the latent; it is 0
    for a deterministic tokenizer. `perceptual` is the squared distance between the features of the reconstruction and
    of the image in the embedded classifier, relative to the squared norm of the latter.
    """

    kl_weight: float = eqx.field(static=True, default=1e-4)
    """Weight of the KL divergence of the latent from N(0, 1)."""
    perceptual_weight: float = eqx.field(static=True, default=0.0)
    """Weight of the distance between features of the embedded classifier; 0 disables it."""

    def draw(
        self, key: PRNGKeyArray, model: AbstractTokenizer, path: AbstractPath, shape: tuple[int, ...]
    ) -> Key[Array, "b"]:
        """Returns a key for each image, used to sample its latent."""
        return jax.random.split(key, shape[0])

    def loss(
        self, model: AbstractTokenizer, path: AbstractPath, batch: Batch, draw: Key[Array, "b"]
    ) -> tuple[Scalar, Metrics]:
        """Returns the weighted sum, and its terms by name, unweighted. `path` is unused: images are clean."""
        features = load_fashion_classifier() if self.perceptual_weight else None

        def of_image(image: Image, key: PRNGKeyArray) -> dict[str, Scalar]:
            posterior = model.encode_raw(image)
            decoded = model.decode_raw(posterior.sample(key))
            terms = {"reconstruction": jnp.mean((decoded - image) ** 2), "kl": posterior.kl() / posterior.mean.size}
            if features is not None:
                ours, theirs = (features((x + 1.0) * 127.5).features for x in (decoded, image))
                terms["perceptual"] = jnp.sum((ours - theirs) ** 2) / (jnp.sum(theirs**2) + 1e-6)
            return terms

        terms = jax.tree.map(jnp.mean, jax.vmap(of_image)(jnp.asarray(batch.image), draw))
        total = terms["reconstruction"] + self.kl_weight * terms["kl"]
        return total + self.perceptual_weight * terms.get("perceptual", 0.0), terms

    def require_suitable(self, model: Any, path: AbstractPath) -> None:
        """Raises `BadInput` naming `model` unless it is an `AbstractTokenizer`."""
        if not isinstance(model, AbstractTokenizer):
            problem = f"{type(model).__name__} is not a tokenizer"
            raise BadInput("model", problem, "Use an AbstractTokenizer, or another objective")

    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` for a weight that is negative or not finite."""
        for name in ("kl_weight", "perceptual_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                subject = f"objective.{name}"
                raise BadInput(subject, f"{getattr(self, name)} is negative or not finite", "Use 0 or more")
