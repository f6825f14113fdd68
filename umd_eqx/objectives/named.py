"""The published objectives, with the published values as defaults (arXiv 2406.17688, table 6)."""

from umd_eqx.objectives.split import Unified
from umd_eqx.objectives.terms import MaskedDenoising, Term


def masked_reconstruction(mask_ratio: float = 0.75) -> MaskedDenoising:
    """MAE: predicts the clean image on hidden patches, without noise."""
    return MaskedDenoising((Term("x0", "hidden", 1.0),), mask_ratio, noised=False)


def denoising() -> MaskedDenoising:
    """DiT: predicts the clean image and the noise on all patches, with no patch hidden."""
    return MaskedDenoising((Term("x0", "all", 0.5), Term("eps", "all", 0.5)), mask_ratio=0.0)


def masked_denoising(mask_ratio: float = 0.5) -> MaskedDenoising:
    """MaskDiT: predicts the clean image on hidden patches and the noise on visible ones."""
    return MaskedDenoising((Term("x0", "hidden", 0.5), Term("eps", "visible", 0.5)), mask_ratio)


def unified(mask_ratio: float = 0.375, mask_ratio_no_noise: float = 0.75, no_noise_prob: float = 0.5) -> Unified:
    """UMD: MaskDiT on the noised images of a batch, and MAE on the clean ones."""
    return Unified(masked_denoising(mask_ratio), masked_reconstruction(mask_ratio_no_noise), no_noise_prob)
