"""The recipes for class-conditional generation: fine-tuning, and training from scratch as its baseline.

Fine-tuning adds labels, with a new label table and label MLP, starts a new optimiser state, and does not mask noised
images, as in the code of the paper (arXiv 2406.17688).
"""

import dataclasses

from umd_eqx.core.paths import CosineTable
from umd_eqx.eval import Denoising, FewShot, Generation, Reconstruction
from umd_eqx.models import ModelConfig
from umd_eqx.objectives import AbstractObjective, Unified, denoising, masked_reconstruction
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.recipes.pretrain import (
    FASHION_MNIST,
    PUBLISHED_NOISY_TIME,
    PUBLISHED_SAMPLER,
    SMALL_SAMPLER,
    Preset,
    imagenet64_data,
    objective_evaluators,
    published_latents,
    small_latents,
)
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.optimisers import AdamW


def umd_ft() -> Config:
    """UMD on the shipped images, fine-tuned with labels; 5 % of each batch is still reconstructed."""
    return _small(_mostly_denoising())


def mae_ft() -> Config:
    """MAE on the shipped images, fine-tuned with labels; 5 % of each batch is still reconstructed."""
    return _with_token(_small(_mostly_denoising()))


def dit_ft() -> Config:
    """DiT on the shipped images, fine-tuned with labels."""
    return _small(denoising(), PUBLISHED_NOISY_TIME)


def maskdit_ft() -> Config:
    """MaskDiT on the shipped images, fine-tuned with labels and without a mask."""
    return _small(denoising(), PUBLISHED_NOISY_TIME)


def dit_scratch() -> Config:
    """DiT on the shipped images, with labels from scratch: the baseline of fine-tuning."""
    return _small(denoising(), PUBLISHED_NOISY_TIME)


def umd_b4_in64_ft() -> Config:
    """UMD-B/4 on ImageNet at 64 px, fine-tuned as published (FID 19.8, IS 46.9)."""
    return _imagenet64(_mostly_denoising())


def mae_b4_in64_ft() -> Config:
    """MAE-B/4 on ImageNet at 64 px, fine-tuned as published (FID 26.8, IS 18.5)."""
    return _with_token(_imagenet64(_mostly_denoising()))


def dit_b4_in64_ft() -> Config:
    """DiT-B/4 on ImageNet at 64 px, fine-tuned as published (FID 18.9, IS 46.9)."""
    return _imagenet64(denoising(), time=PUBLISHED_NOISY_TIME)


def maskdit_b4_in64_ft() -> Config:
    """MaskDiT-B/4 on ImageNet at 64 px, fine-tuned as published (FID 19.0, IS 43.4)."""
    return _imagenet64(denoising(), time=PUBLISHED_NOISY_TIME)


def latent_umd_ft() -> Config:
    """UMD on the latents of the shipped images, fine-tuned with labels."""
    return small_latents(_small(_mostly_denoising()))


def latent_umd_fsq_ft() -> Config:
    """UMD on quantised latents of the shipped images, fine-tuned with labels."""
    return dataclasses.replace(latent_umd_ft(), tokenizer="fashion-fsq")


def latent_umd_l2_in256_ft() -> Config:
    """Latent-UMD-L/2 on ImageNet at 256 px, fine-tuned as published (FID 3.96, IS 212.6)."""
    return published_latents(_imagenet64(_mostly_denoising()))


def dit_b4_in64_scratch() -> Config:
    """DiT-B/4 on ImageNet at 64 px with labels from scratch, for 400 epochs as published for Latent-DiT-L/2."""
    return _imagenet64(denoising(), epochs=400.0, time=PUBLISHED_NOISY_TIME)


FINETUNE: dict[str, Preset] = {
    "umd-ft": umd_ft,
    "mae-ft": mae_ft,
    "dit-ft": dit_ft,
    "maskdit-ft": maskdit_ft,
    "dit-scratch": dit_scratch,
    "umd-b4-in64-ft": umd_b4_in64_ft,
    "mae-b4-in64-ft": mae_b4_in64_ft,
    "dit-b4-in64-ft": dit_b4_in64_ft,
    "maskdit-b4-in64-ft": maskdit_b4_in64_ft,
    "dit-b4-in64-scratch": dit_b4_in64_scratch,
    "latent-umd-ft": latent_umd_ft,
    "latent-umd-fsq-ft": latent_umd_fsq_ft,
    "latent-umd-l2-in256-ft": latent_umd_l2_in256_ft,
}
"""The presets of `experiments/finetune.py`. Those whose names end in -ft start from trained weights."""


def starts_from_weights(preset: str) -> bool:
    """Whether a recipe requires `--from`."""
    return not preset.endswith("-scratch")


def _mostly_denoising() -> AbstractObjective:
    return Unified(denoising(), masked_reconstruction(), no_noise_prob=0.05)


def _with_token(config: Config) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, conditioning="token"))


def _small(objective: AbstractObjective, time: float = 0.0) -> Config:
    steps = 3000
    # With the published rate, 93 % of the average would still be the first weights after 3000 steps of 64 images; with
    # this one, 0.2 % are.
    ema = EmaConfig(rate=2e-3, batch_size=None)
    learned = objective_evaluators(
        objective, Reconstruction(every=steps, images=250), Denoising(every=steps, images=125)
    )
    evaluators = {
        "fewshot": FewShot(every=steps, time=time, l2=None, headline="both", test_images=5000),
        **learned,
        "generation": Generation(every=steps // 3, samples=200, sampler=SMALL_SAMPLER),
    }
    return Config(
        model=ModelConfig(variant="nano/4", conditioning="adaln", class_tokens=1, position_std=0.7, labels=True),
        objective=objective,
        path=CosineTable(),
        data=DataConfig(area_min=100.0, flip=False, batch_size=64, expected=FASHION_MNIST),
        optim=AdamW(lr=1e-3, lr_batch_size=None, steps=steps, warmup=0.05, beta2=0.999, weight_decay=0.0),
        ema=ema,
        eval=evaluators,
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=50),
    )


def _imagenet64(objective: AbstractObjective, *, epochs: float = 50.0, time: float = 0.0) -> Config:
    evaluators = {
        "fewshot": FewShot(every=10_000, time=time, raw_pixels=False),
        **objective_evaluators(objective, Reconstruction(every=25_000), Denoising(every=25_000)),
        "generation": Generation(every=25_000, samples=10_240, sampler=PUBLISHED_SAMPLER),
    }
    return Config(
        model=ModelConfig(
            variant="B/4", conditioning="adaln", class_tokens=4, class_token_std=0.0, labels=True, remat="full"
        ),
        objective=objective,
        path=CosineTable(),
        data=imagenet64_data(area_min=95.0, batch_size=256),
        optim=AdamW(lr=1.5e-4, epochs=epochs, beta2=0.999, weight_decay=0.0, mu_dtype="bfloat16"),
        ema=EmaConfig(rate=1e-4, only_with_labels=True),
        eval=evaluators,
    )
