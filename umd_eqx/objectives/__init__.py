"""Training objectives: losses of a network along a path from data to noise."""

from umd_eqx.objectives.base import AbstractObjective as AbstractObjective
from umd_eqx.objectives.base import Draw as Draw
from umd_eqx.objectives.base import draw_noised as draw_noised
from umd_eqx.objectives.classification import Classification as Classification
from umd_eqx.objectives.linear_probe import LinearProbing as LinearProbing
from umd_eqx.objectives.mean_flow import MeanFlow as MeanFlow
from umd_eqx.objectives.named import denoising as denoising
from umd_eqx.objectives.named import masked_denoising as masked_denoising
from umd_eqx.objectives.named import masked_reconstruction as masked_reconstruction
from umd_eqx.objectives.named import unified as unified
from umd_eqx.objectives.patch_noise import PatchNoise as PatchNoise
from umd_eqx.objectives.split import Unified as Unified
from umd_eqx.objectives.terms import MaskedDenoising as MaskedDenoising
from umd_eqx.objectives.terms import Term as Term
from umd_eqx.objectives.tokenizing import Tokenizing as Tokenizing
