"""The ViT auto-encoder that every system of the project trains."""

from umd_eqx.models.autoencoder import AbstractModel as AbstractModel
from umd_eqx.models.autoencoder import AutoEncoder as AutoEncoder
from umd_eqx.models.autoencoder import Part as Part
from umd_eqx.models.reference import from_reference as from_reference
from umd_eqx.models.variants import ModelConfig as ModelConfig
