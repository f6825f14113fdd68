"""Every recipe by name: the structure of a method, with its numbers. A flag changes a number, a preset the structure.

The first four run on the images that ship with the package, sized to a laptop; the others are rows of the paper
(arXiv 2406.17688, tables 1 and 6, and its code).
"""

import dataclasses
from collections.abc import Callable

from umd_eqx.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.eval import AbstractEvaluator, Denoising, FewShot, Generation, Reconstruction
from umd_eqx.models import ModelConfig
from umd_eqx.objectives import AbstractObjective, denoising, masked_denoising, masked_reconstruction, unified
from umd_eqx.optim import EmaConfig, OptimConfig
from umd_eqx.paths import CosineTable, LinearTable
from umd_eqx.sampling import SamplerConfig
from umd_eqx.types import DataSpec, LatentSpec

Preset = Callable[[], Config]

PUBLISHED_TOKENIZER = "stable-diffusion-v1-5/stable-diffusion-v1-5/vae"
"""Whose latents the published systems are trained on: the VAE of Stable Diffusion 1.5, scale 0.18215.

stabilityai/sd-vae-ft-mse has the same encoder, and hence the same latents; its decoder was trained further.
"""

SMALL_LATENT = LatentSpec(4, 4)
"""What both tokenizers that come with the package make of images."""

SMALL_LATENT_SAMPLER = SamplerConfig(name="dpmpp", steps=16, head="v", clip=False)
PUBLISHED_LATENT_SAMPLER = SamplerConfig(name="ddim", steps=125, eta=1.0, grid="reference", clip=False)

PUBLISHED_NOISY_TIME = 0.051
"""Where the reference reads the features of systems that never saw a clean image: diffusion index 50, step 51."""


def umd() -> Config:
    """UMD on the shipped images: half of each batch reconstructed, half denoised."""
    steps = 2000
    evaluators = _probe(steps) | _reconstruction(steps) | _denoising(steps)
    return _small(unified(), steps, evaluators)


def mae() -> Config:
    """MAE on the shipped images: hidden patches of clean images."""
    steps = 4000
    config = _small(masked_reconstruction(), steps, _probe(steps) | _reconstruction(steps))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, conditioning="token"))


def dit() -> Config:
    """DiT on the shipped images: denoising with every patch visible."""
    steps = 1200
    return _small(denoising(), steps, _probe(steps, PUBLISHED_NOISY_TIME) | _denoising(steps))


def maskdit() -> Config:
    """MaskDiT on the shipped images: denoising with half of the patches hidden."""
    steps = 1400
    evaluators = _probe(steps, PUBLISHED_NOISY_TIME) | _reconstruction(steps, 0.5) | _denoising(steps)
    return _small(masked_denoising(), steps, evaluators)


def umd_b4_in64() -> Config:
    """UMD-B/4 on ImageNet at 64 px, as published (100-shot probe 31.8 %)."""
    return _imagenet64(unified(), batch_size=1024, evaluators=_published_evals())


def mae_b4_in64() -> Config:
    """MAE-B/4 on ImageNet at 64 px, as published (100-shot probe 36.6 %)."""
    config = _imagenet64(masked_reconstruction(), batch_size=4096, evaluators=_published_evals())
    return dataclasses.replace(config, model=dataclasses.replace(config.model, conditioning="token"))


def dit_b4_in64() -> Config:
    """DiT-B/4 on ImageNet at 64 px, as published (100-shot probe 25.6 %)."""
    return _imagenet64(denoising(), batch_size=1024, evaluators=_published_evals(PUBLISHED_NOISY_TIME))


def maskdit_b4_in64() -> Config:
    """MaskDiT-B/4 on ImageNet at 64 px, as published (100-shot probe 26.3 %)."""
    return _imagenet64(masked_denoising(), batch_size=1024, evaluators=_published_evals(PUBLISHED_NOISY_TIME))


def mae_l16_in256() -> Config:
    """MAE-L/16 on ImageNet at 256 px, as published (100-shot probe 51.1 %)."""
    config = _imagenet64(masked_reconstruction(), batch_size=1024, evaluators=_published_evals())
    model = dataclasses.replace(config.model, variant="L/16", conditioning="token")
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, size=256))


def latent_umd() -> Config:
    """UMD on the latents of the shipped images: 7 x 7 of 4 numbers, by the KL tokenizer that comes with the package."""
    steps = 2000
    return small_latents(_small(unified(), steps, _probe(steps) | _reconstruction(steps) | _denoising(steps)))


def latent_umd_fsq() -> Config:
    """UMD on quantised latents of the shipped images: 7 x 7 codes, by the FSQ tokenizer that comes with the package."""
    return dataclasses.replace(latent_umd(), tokenizer="fashion-fsq")


def latent_dit() -> Config:
    """DiT on the latents of the shipped images, with labels from the first step."""
    steps = 3000
    generation = Generation(every=steps // 3, samples=200, sampler=SMALL_LATENT_SAMPLER)
    evaluators = _probe(steps, PUBLISHED_NOISY_TIME) | _denoising(steps) | {"generation": generation}
    config = small_latents(_small(denoising(), steps, evaluators))
    optim = dataclasses.replace(config.optim, beta2=0.999, weight_decay=0.0, warmup=0.05)
    data = dataclasses.replace(config.data, batch_size=64)
    model = dataclasses.replace(config.model, labels=True)
    return dataclasses.replace(config, model=model, data=data, optim=optim, ema=EmaConfig(2e-3, batch_size=None))


def latent_umd_l2_in256() -> Config:
    """Latent-UMD-L/2 on ImageNet at 256 px, as published (100-shot probe 54.4 %)."""
    return published_latents(_imagenet64(unified(), batch_size=1024, evaluators=_published_evals()))


def latent_dit_l2_in256() -> Config:
    """Latent-DiT-L/2 on ImageNet at 256 px with labels from scratch, as published (FID 4.31, IS 274.5)."""
    generation = Generation(every=25_000, sampler=PUBLISHED_LATENT_SAMPLER)
    evaluators = _published_evals(PUBLISHED_NOISY_TIME) | {"generation": generation}
    config = published_latents(_imagenet64(denoising(), batch_size=256, evaluators=evaluators))
    model = dataclasses.replace(config.model, labels=True)
    optim = dataclasses.replace(config.optim, epochs=400.0, beta2=0.999, weight_decay=0.0)
    data = dataclasses.replace(config.data, area_min=95.0)
    return dataclasses.replace(config, model=model, optim=optim, data=data)


PRETRAIN: dict[str, Preset] = {
    "umd": umd,
    "mae": mae,
    "dit": dit,
    "maskdit": maskdit,
    "umd-b4-in64": umd_b4_in64,
    "mae-b4-in64": mae_b4_in64,
    "dit-b4-in64": dit_b4_in64,
    "maskdit-b4-in64": maskdit_b4_in64,
    "mae-l16-in256": mae_l16_in256,
    "latent-umd": latent_umd,
    "latent-umd-fsq": latent_umd_fsq,
    "latent-dit": latent_dit,
    "latent-umd-l2-in256": latent_umd_l2_in256,
    "latent-dit-l2-in256": latent_dit_l2_in256,
}
"""The presets of `experiments/pretrain.py`; the first is its default."""


def small_latents(config: Config) -> Config:
    """A recipe for the shipped images as one for their latents: a latent has as many patches as the image had.

    On the linear betas, as the published systems of latents.
    """
    model = dataclasses.replace(config.model, variant="nano/1")
    return dataclasses.replace(config, model=model, path=LinearTable(), tokenizer="fashion-kl", latent=SMALL_LATENT)


def published_latents(config: Config) -> Config:
    """A recipe for ImageNet as one for the latents of 256 px images: 32 x 32 of 4 numbers, L/2, linear betas."""
    model = dataclasses.replace(config.model, variant="L/2")
    data = dataclasses.replace(config.data, size=256)
    changes = {"path": LinearTable(), "tokenizer": PUBLISHED_TOKENIZER, "latent": LatentSpec(8, 4)}
    return dataclasses.replace(config, model=model, data=data, **changes)


def _small(objective: AbstractObjective, steps: int, evaluators: dict[str, AbstractEvaluator]) -> Config:
    # Small batches and many steps learn most in the minutes that a laptop has; crops and flips did not help there. With
    # positions as weak as the published ones, features of the untrained network hardly tell where a patch lies.
    return Config(
        model=ModelConfig(variant="nano/4", conditioning="adaln", class_tokens=1, position_std=0.7),
        objective=objective,
        path=CosineTable(),
        data=DataConfig(area_min=100.0, flip=False, batch_size=32, expected=FASHION_MNIST),
        optim=OptimConfig(lr=1e-3, lr_batch_size=None, steps=steps, warmup=0.1),
        ema=EmaConfig(rate=4e-3, batch_size=None),
        eval=evaluators,
        checkpoint=CheckpointConfig(every=400),
        log=LogConfig(every=50),
    )


def _imagenet64(objective: AbstractObjective, *, batch_size: int, evaluators: dict[str, AbstractEvaluator]) -> Config:
    return Config(
        model=ModelConfig(variant="B/4", conditioning="adaln", class_tokens=4, class_token_std=0.0, remat="full"),
        objective=objective,
        path=CosineTable(),
        data=DataConfig(
            name="imagenet2012",
            train_split="train[:99%]",
            test_split="validation",
            size=64,
            area_min=80.0,
            flip=True,
            batch_size=batch_size,
            eval_batch_size=1024,
            expected=IMAGENET,
        ),
        optim=OptimConfig(lr=1.5e-4, epochs=800.0, mu_dtype="bfloat16"),
        ema=EmaConfig(rate=1e-4, only_with_labels=True),
        eval=evaluators,
    )


FASHION_MNIST = DataSpec("fashion_mnist", 60_000, 10_000, 28, 28, 1, 10)
IMAGENET = DataSpec("imagenet2012", 1_268_355, 50_000, None, None, 3, 1000)


def _probe(steps: int, time: float = 0.0) -> dict[str, AbstractEvaluator]:
    return {"fewshot": FewShot(every=steps // 4, time=time, l2=None, test_images=5000)}


def _reconstruction(steps: int, mask_ratio: float = 0.75) -> dict[str, AbstractEvaluator]:
    return {"reconstruction": Reconstruction(every=steps // 4, mask_ratio=mask_ratio, images=250)}


def _denoising(steps: int) -> dict[str, AbstractEvaluator]:
    return {"denoising": Denoising(every=steps // 4, images=125)}


def _published_evals(time: float = 0.0) -> dict[str, AbstractEvaluator]:
    return {
        "fewshot": FewShot(every=10_000, time=time, raw_pixels=False),
        "reconstruction": Reconstruction(every=25_000),
        "denoising": Denoising(every=25_000),
    }
