"""The networks that this package trains."""

from umd_eqx.models.base import AbstractLayeredModel as AbstractLayeredModel
from umd_eqx.models.base import AbstractModel as AbstractModel
from umd_eqx.models.base import AbstractPatchModel as AbstractPatchModel
from umd_eqx.models.base import Group as Group
from umd_eqx.models.base import num_patches_of as num_patches_of
from umd_eqx.models.config import AbstractModelConfig as AbstractModelConfig
from umd_eqx.models.vit.autoencoder import AutoEncoder as AutoEncoder
from umd_eqx.models.vit.embedders import CondEmbedder as CondEmbedder
from umd_eqx.models.vit.reference import from_reference as from_reference
from umd_eqx.models.vit.variants import ModelConfig as ModelConfig
