"""A frozen network with a linear classifier on its normalised features: the published linear probe."""

import dataclasses

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import FeatureKind, Image, NetworkTime
from umd_eqx.models.base import AbstractModel, AbstractPatchModel
from umd_eqx.models.vit.encoders import AbstractEncoderConfig, encoder_of
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.warm_start import warm_start

VARIANCE_EPS = 1e-5
"""Added to the variance of a feature, as in the published code."""


class LinearProbe(eqx.Module):
    """A network and a linear layer on its features, normalised by their mean and variance over many images.

    This is batch normalisation without scale and bias (Ioffe and Szegedy 2015) before a linear layer. The module has no
    running averages: the moments are arguments, from the batch in training, and from a pass over the training images in
    evaluation.
    """

    backbone: AbstractPatchModel
    head: Linear
    features: FeatureKind = eqx.field(static=True)

    def represent(self, image: Image, t: NetworkTime) -> Float[Array, "d"]:
        """Returns the features of one image at network time `t` (0: clean), without conditioning on its label."""
        return self.backbone.represent(image, self.backbone.cond().at(t)).of(self.features)

    def logits(
        self, features: Float[Array, "b d"], mean: Float[Array, "d"], variance: Float[Array, "d"]
    ) -> Float[Array, "b classes"]:
        """Returns unnormalised log-probabilities of the classes, given features and their moments."""
        normalised = (features - mean[None]) * jax.lax.rsqrt(variance + VARIANCE_EPS)[None]
        return normalised @ self.head.kernel + self.head.bias[None]


@dataclasses.dataclass(frozen=True)
class LinearProbeConfig(AbstractEncoderConfig):
    """The configuration of a linear probe: that of the network, and of the linear layer."""

    network_classes: int | None = None
    """Number of classes of the network's label table, if it has one (`network.labels`)."""
    features: FeatureKind = "class_tokens"
    """Features to classify: the mean of the class tokens (as published), the mean of the patches, or both."""

    @property
    def title(self) -> str:
        """The variant of the network, with `probe`."""
        return f"{self.network.title} probe"

    def validate(self, size: int, field: str = "model.network.variant") -> None:
        """Raises `BadInput` if the network is invalid for images of `size` x `size`."""
        self.network.validate(size, field)
        if self.network.labels and self.network_classes is None:
            hint = "Give the number of classes of the network's label table"
            raise BadInput("model.network_classes", "the network has a label table of unknown size", hint)

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> LinearProbe:
        """Returns a freshly initialised network, without its decoder, with a linear layer for `num_classes`."""
        self.validate(size)
        network_key, head_key = jax.random.split(key)
        backbone = encoder_of(self.network.build(size, channels, self.network_classes or 0, key=network_key))
        width = self.num_features(self.features)
        return LinearProbe(backbone, Linear.init(width, num_classes, key=head_key), self.features)

    def start(self, fresh: eqx.Module, source: AbstractModel) -> LinearProbe:
        """Returns `fresh` with all weights of `source` but those of its decoder. Raises `BadInput` naming `from`."""
        assert isinstance(fresh, LinearProbe)
        return LinearProbe(warm_start(fresh.backbone, source, anew=()), fresh.head, fresh.features)
