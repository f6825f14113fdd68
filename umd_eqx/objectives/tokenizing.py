"""What a tokenizer is trained for: to give an image back, by a latent that is no freer than it has to be."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Image, Metrics, Scalar
from umd_eqx.models.extractors.fashion import load_fashion_classifier
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.objectives.base import AbstractObjective


class Tokenizing(AbstractObjective):
    """Mean squared error of the decoded image, and two terms that may be left out (Rombach et al. 2022, appendix G).

    `kl` is the divergence of the latent's posterior from N(0, 1), in nats a number of the latent; a tokenizer whose
    latent is a point has none. `perceptual` is the squared distance of the images in the features of the classifier
    that comes with the package, relative to their length.
    """

    kl_weight: float = eqx.field(static=True, default=1e-4)
    """Weight of the divergence of the latent from N(0, 1)."""
    perceptual_weight: float = eqx.field(static=True, default=0.0)
    """Weight of the distance in the features of the embedded classifier; 0 leaves it out."""

    @property
    def denoises(self) -> bool:
        """No."""
        return False

    @property
    def hides(self) -> bool:
        """No."""
        return False

    @property
    def predicts_visible_x0(self) -> bool:
        """No: nothing is noised."""
        return False

    def draw(
        self, key: PRNGKeyArray, model: AbstractTokenizer, path: AbstractPath, shape: tuple[int, ...]
    ) -> Key[Array, "b"]:
        """A key for each image: what its latent is drawn by."""
        return jax.random.split(key, shape[0])

    def loss(
        self, model: AbstractTokenizer, path: AbstractPath, batch: Batch, draw: Key[Array, "b"]
    ) -> tuple[Scalar, Metrics]:
        """The weighted sum; its terms by name, unweighted. The path is not used: nothing is noised."""
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

    def period(self, batch_size: int) -> int:
        """1: every image is treated alike."""
        return 1

    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` for a weight that is none."""
        for name in ("kl_weight", "perceptual_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                flag = f"--objective.{name.replace('_', '-')}"
                raise BadInput(flag, f"{getattr(self, name)} is no weight", "Use 0 or more")
