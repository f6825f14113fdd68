"""What networks on the encoder of an auto-encoder share: the encoder alone, and its part of their configuration."""

import dataclasses

import equinox as eqx

from umd_eqx.core.types import FeatureKind
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.vit.autoencoder import AutoEncoder
from umd_eqx.models.vit.variants import ModelConfig


@dataclasses.dataclass(frozen=True)
class AbstractEncoderConfig(AbstractModelConfig):
    """Base class for the configurations of a linear layer on the features of an encoder."""

    network: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The auto-encoder whose encoder is used."""

    @property
    def class_conditional(self) -> bool:
        """Always False: the label is the prediction target, not an input."""
        return False

    @property
    def precision(self) -> str:
        """The dtype of the network's tokens; the linear layer is in float32."""
        return self.network.precision

    def num_features(self, kind: FeatureKind) -> int:
        """Returns the length of the features: the width of the encoder, or twice the width for "both"."""
        return self.network.sizes()[0].width * (2 if kind == "both" else 1)


def encoder_of(network: AutoEncoder) -> AutoEncoder:
    """Returns the network without the parameters of its decoder, which `represent` does not use.

    Calling the result itself, to predict images, is an error.
    """

    def decoder(network: AutoEncoder) -> list[object]:
        return [network.bridge, network.mask_token, network.decoder_positions, network.decoder, network.head]

    return eqx.tree_at(decoder, network, [None] * 5, is_leaf=lambda leaf: leaf is None)
