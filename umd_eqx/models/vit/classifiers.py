"""A ViT classifier: the encoder of the auto-encoder with a linear layer on its features."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import FeatureKind, Image
from umd_eqx.models.base import AbstractModel
from umd_eqx.models.extractors.classifier import AbstractClassifier
from umd_eqx.models.vit.autoencoder import AutoEncoder
from umd_eqx.models.vit.encoders import AbstractEncoderConfig, encoder_of
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.warm_start import warm_start


class ViTClassifier(AbstractClassifier):
    """The encoder of an auto-encoder, at time 0 and without a label, and a linear layer on its features.

    `drop_path` is the largest probability of stochastic depth (Huang et al. 2016): in training, the residual branches
    of block i of L are dropped with probability i / (L - 1) `drop_path`, independently for each image and branch, and
    scaled by the inverse of the probability of keeping them otherwise.
    """

    backbone: AutoEncoder
    head: Linear
    features: FeatureKind = eqx.field(static=True)
    drop_path: float = eqx.field(static=True, default=0.0)

    def logits(self, image: Image) -> Float[Array, "classes"]:
        """Returns the logits of one image, without stochastic depth."""
        return self._logits(image, None)

    def training_logits(self, image: Image, key: PRNGKeyArray) -> Float[Array, "classes"]:
        """Returns the logits with stochastic depth."""
        if self.drop_path == 0:
            return self.logits(image)
        depth = len(self.backbone.encoder.blocks.norm1.scale)
        kept = 1.0 - self.drop_path * jnp.linspace(0.0, 1.0, depth, dtype=jnp.float32)[:, None]
        return self._logits(image, jnp.where(jax.random.bernoulli(key, kept, (depth, 2)), 1.0 / kept, 0.0))

    def _logits(self, image: Image, branches: Float[Array, "depth 2"] | None) -> Float[Array, "classes"]:
        return self.head(self.backbone.represent(image, self.backbone.cond(), branches).of(self.features))


@dataclasses.dataclass(frozen=True)
class ViTClassifierConfig(AbstractEncoderConfig):
    """The configuration of a ViT classifier: that of the network, and of the linear layer."""

    features: FeatureKind = "patches"
    """Features to classify: the mean of the class tokens, the mean of the patches (global pooling), or both."""
    head_std: float = 0.0
    """Standard deviation of the linear layer's initial weights."""
    drop_path: float = 0.0
    """Probability with which the residual branches of the last block are dropped in training (stochastic depth). It
    rises linearly from 0 at the first block."""

    @property
    def title(self) -> str:
        """The variant of the network, with `classifier`."""
        return f"{self.network.title} classifier"

    def validate(self, size: int, field: str = "model.network.variant") -> None:
        """Raises `BadInput` if a value is invalid, or the network does not fit images of `size` x `size`."""
        self.network.validate(size, field)
        if self.network.labels:
            problem = "a classifier predicts the label and cannot be conditioned on it"
            raise BadInput("model.network.labels", problem, "Leave it out")
        if not self.head_std >= 0:
            raise BadInput("model.head_std", f"{self.head_std} is not a standard deviation", "Use 0 or more")
        if not 0 <= self.drop_path < 1:
            raise BadInput("model.drop_path", f"{self.drop_path} is outside [0, 1)", "Use a small share such as 0.1")

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> ViTClassifier:
        """Returns a freshly initialised network, without a decoder, with a linear layer for `num_classes`."""
        self.validate(size)
        network_key, head_key = jax.random.split(key)
        backbone = encoder_of(self.network.build(size, channels, num_classes, key=network_key))
        width = self.num_features(self.features)
        kernel = jax.random.normal(head_key, (width, num_classes), jnp.float32) * self.head_std
        head = Linear(kernel, jnp.zeros(num_classes, jnp.float32))
        return ViTClassifier(backbone, head, self.features, self.drop_path)

    def start(self, fresh: eqx.Module, source: AbstractModel) -> ViTClassifier:
        """Returns `fresh` with the weights of `source` but those of its decoder. Raises `BadInput` naming `from`."""
        assert isinstance(fresh, ViTClassifier)
        return dataclasses.replace(fresh, backbone=warm_start(fresh.backbone, source))
