"""The pretraining recipes by name. A preset sets the structure of a method; flags override its numbers.

Recipes without "in64" or "in256" in their names run on the images that ship with the package, on a laptop; the others
are rows of the paper (arXiv 2406.17688, tables 1 and 6, and its code).
"""

import dataclasses
from collections.abc import Callable

from umd_eqx.core.paths import AbstractPath, CosineTable, LinearTable, RectifiedFlow
from umd_eqx.core.predictions import PredictionType
from umd_eqx.core.types import DataSpec, LatentSpec
from umd_eqx.data.source_configs import TFDS
from umd_eqx.eval import AbstractEvaluator, Denoising, FewShot, Generation, Reconstruction
from umd_eqx.models import ModelConfig
from umd_eqx.objectives import (
    AbstractObjective,
    MaskedDenoising,
    MeanFlow,
    PatchNoise,
    Term,
    denoising,
    masked_denoising,
    masked_reconstruction,
    unified,
)
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.sampling import DDIM, AbstractSampler, DPMSolverPP, Heun, MeanFlowSampler
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.optimisers import AdamW

Preset = Callable[[], Config]

PUBLISHED_TOKENIZER = "stable-diffusion-v1-5/stable-diffusion-v1-5/vae"
"""The tokenizer of the published latent systems: the VAE of Stable Diffusion 1.5, scale 0.18215.

stabilityai/sd-vae-ft-mse has the same encoder and so the same latents; its decoder was trained further.
"""

SMALL_LATENT = LatentSpec(4, 4)
"""The latents of both tokenizers that come with the package: factor 4, 4 channels."""

# Few steps, to sample in minutes on a laptop. Near pure noise, v is dominated by the predicted clean image. The
# predicted noise carries no information about the image there (alpha is 5e-5), which shows after so little training.
SMALL_SAMPLER = DPMSolverPP(steps=16, head="v")
PUBLISHED_SAMPLER = DDIM(steps=125, eta=1.0)

PUBLISHED_NOISY_TIME = 0.051
"""Time at which the reference probes systems that are not trained on clean images: diffusion index 50, step 51."""


def umd() -> Config:
    """UMD on the shipped images: half of each batch is reconstructed, half is denoised."""
    return _small(unified(), 2000)


def mae() -> Config:
    """MAE on the shipped images: hidden patches of clean images are predicted."""
    config = _small(masked_reconstruction(), 4000)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, conditioning="token"))


def dit() -> Config:
    """DiT on the shipped images: denoising with every patch visible."""
    return _small(denoising(), 1200, time=PUBLISHED_NOISY_TIME)


def maskdit() -> Config:
    """MaskDiT on the shipped images: denoising with half of the patches hidden."""
    return _small(masked_denoising(), 1400, time=PUBLISHED_NOISY_TIME, mask_ratio=0.5)


def x_prediction() -> Config:
    """Rectified flow with x0 prediction and a v loss, with labels (arXiv 2511.13720)."""
    objective = MaskedDenoising((Term("v", "all", 1.0),), mask_ratio=0.0)
    return _generator(objective, "x0", RectifiedFlow(), Heun(steps=16))


def mean_flow() -> Config:
    """MeanFlow with labels: generation in one call of the network (arXiv 2505.13447)."""
    return _generator(MeanFlow(), "u", RectifiedFlow(), MeanFlowSampler(steps=1), cfg_scales=(1.0,))


def patch_noise() -> Config:
    """Denoising with a noise level for each patch, with labels."""
    return _generator(PatchNoise(), "x0_eps", CosineTable(), SMALL_SAMPLER)


def umd_b4_in64() -> Config:
    """UMD-B/4 on ImageNet at 64 px, as published (100-shot probe 31.8 %)."""
    return _imagenet64(unified(), batch_size=1024)


def mae_b4_in64() -> Config:
    """MAE-B/4 on ImageNet at 64 px, as published (100-shot probe 36.6 %)."""
    config = _imagenet64(masked_reconstruction(), batch_size=4096)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, conditioning="token"))


def dit_b4_in64() -> Config:
    """DiT-B/4 on ImageNet at 64 px, as published (100-shot probe 25.6 %)."""
    return _imagenet64(denoising(), batch_size=1024, time=PUBLISHED_NOISY_TIME)


def maskdit_b4_in64() -> Config:
    """MaskDiT-B/4 on ImageNet at 64 px, as published (100-shot probe 26.3 %)."""
    return _imagenet64(masked_denoising(), batch_size=1024, time=PUBLISHED_NOISY_TIME)


def mae_l16_in256() -> Config:
    """MAE-L/16 on ImageNet at 256 px, as published (100-shot probe 51.1 %)."""
    config = _imagenet64(masked_reconstruction(), batch_size=1024)
    model = dataclasses.replace(config.model, variant="L/16", conditioning="token")
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, size=256))


def latent_umd() -> Config:
    """UMD on the latents of the shipped images: 7 x 7 x 4, from the KL tokenizer that comes with the package."""
    return small_latents(_small(unified(), 2000))


def latent_umd_fsq() -> Config:
    """UMD on quantised latents of the shipped images: 7 x 7 codes of the FSQ tokenizer that comes with the package."""
    return dataclasses.replace(latent_umd(), tokenizer="fashion-fsq")


def latent_dit() -> Config:
    """DiT on the latents of the shipped images, with labels from the first step."""
    return small_latents(_generator(denoising(), "x0_eps", CosineTable(), SMALL_SAMPLER))


def latent_umd_l2_in256() -> Config:
    """Latent-UMD-L/2 on ImageNet at 256 px, as published (100-shot probe 54.4 %)."""
    return published_latents(_imagenet64(unified(), batch_size=1024))


def latent_dit_l2_in256() -> Config:
    """Latent-DiT-L/2 on ImageNet at 256 px with labels from scratch, as published (FID 4.31, IS 274.5)."""
    generation = Generation(every=25_000, sampler=PUBLISHED_SAMPLER)
    config = published_latents(_imagenet64(denoising(), batch_size=256, time=PUBLISHED_NOISY_TIME))
    evaluators = config.eval | {"generation": generation}
    model = dataclasses.replace(config.model, labels=True)
    optim = dataclasses.replace(config.optim, epochs=400.0, beta2=0.999, weight_decay=0.0)
    data = dataclasses.replace(config.data, area_min=95.0)
    return dataclasses.replace(config, model=model, optim=optim, data=data, eval=evaluators)


PRETRAIN: dict[str, Preset] = {
    "umd": umd,
    "mae": mae,
    "dit": dit,
    "maskdit": maskdit,
    "x-prediction": x_prediction,
    "mean-flow": mean_flow,
    "patch-noise": patch_noise,
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
    """Turns a recipe for the shipped images into one for their latents, with the same number of patches.

    Uses linear betas, as the published latent systems do.
    """
    model = dataclasses.replace(config.model, variant="nano/1")
    return dataclasses.replace(config, model=model, path=LinearTable(), tokenizer="fashion-kl", latent=SMALL_LATENT)


def published_latents(config: Config) -> Config:
    """Turns a recipe for ImageNet into one for the latents of 256 px images: 32 x 32 x 4, L/2, linear betas."""
    model = dataclasses.replace(config.model, variant="L/2")
    data = dataclasses.replace(config.data, size=256)
    changes = {"path": LinearTable(), "tokenizer": PUBLISHED_TOKENIZER, "latent": LatentSpec(8, 4)}
    return dataclasses.replace(config, model=model, data=data, **changes)


def imagenet64_data(*, area_min: float, batch_size: int) -> DataConfig:
    """Returns ImageNet at 64 px in the published splits."""
    return DataConfig(
        source=TFDS("imagenet2012"),
        train_split="train[:99%]",
        test_split="validation",
        size=64,
        area_min=area_min,
        flip=True,
        batch_size=batch_size,
        eval_batch_size=1024,
        expected=IMAGENET,
    )


def objective_evaluators(
    objective: AbstractObjective, reconstruction: Reconstruction, denoising: Denoising
) -> dict[str, AbstractEvaluator]:
    """Returns the evaluators, by name, that measure what an objective trains, as the reference does.

    `reconstruction` is included if the objective hides patches, `denoising` if it noises images.
    """
    trained = {"reconstruction": (reconstruction, objective.hides), "denoising": (denoising, objective.denoises)}
    return {name: evaluator for name, (evaluator, measured) in trained.items() if measured}


def _small(objective: AbstractObjective, steps: int, *, time: float = 0.0, mask_ratio: float = 0.75) -> Config:
    # Small batches and many steps learn most in a few minutes on a laptop; crops and flips did not help. With position
    # embeddings as small as the published ones, features of the untrained network hardly depend on a patch's position.
    every = steps // 4
    evaluators = {
        "fewshot": FewShot(every=every, time=time, l2=None, headline="both", test_images=5000)
    } | objective_evaluators(
        objective,
        Reconstruction(every=every, mask_ratio=mask_ratio, images=250),
        Denoising(every=every, images=125),
    )
    return Config(
        model=ModelConfig(variant="nano/4", conditioning="adaln", class_tokens=1, position_std=0.7),
        objective=objective,
        path=CosineTable(),
        data=DataConfig(area_min=100.0, flip=False, batch_size=32, expected=FASHION_MNIST),
        optim=AdamW(lr=1e-3, lr_batch_size=None, steps=steps, warmup=0.1),
        ema=EmaConfig(rate=4e-3, batch_size=None),
        eval=evaluators,
        checkpoint=CheckpointConfig(every=400),
        log=LogConfig(every=50),
    )


def _generator(
    objective: AbstractObjective,
    prediction: PredictionType,
    path: AbstractPath,
    sampler: AbstractSampler,
    *,
    steps: int = 3000,
    cfg_scales: tuple[float, ...] = (1.0, 2.0, 4.0),
) -> Config:
    """Class-conditional generation of the shipped images from scratch, with as many steps as `dit-scratch`."""
    config = _small(objective, steps, time=PUBLISHED_NOISY_TIME)
    generation = Generation(every=steps // 3, samples=200, sampler=sampler, cfg_scales=cfg_scales)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, labels=True, prediction=prediction),
        path=path,
        data=dataclasses.replace(config.data, batch_size=64),
        optim=dataclasses.replace(config.optim, beta2=0.999, weight_decay=0.0, warmup=0.05),
        ema=EmaConfig(2e-3, batch_size=None),
        eval=config.eval | {"generation": generation},
    )


def _imagenet64(objective: AbstractObjective, *, batch_size: int, time: float = 0.0) -> Config:
    probe = FewShot(every=10_000, time=time, raw_pixels=False)  # the headline is the class tokens, as in the reference
    # All systems are evaluated at a mask ratio of 0.75, as in the reference, even MaskDiT, which is trained at 0.5.
    learned = objective_evaluators(objective, Reconstruction(every=25_000, mask_ratio=0.75), Denoising(every=25_000))
    return Config(
        model=ModelConfig(variant="B/4", conditioning="adaln", class_tokens=4, class_token_std=0.0, remat="full"),
        objective=objective,
        path=CosineTable(),
        data=imagenet64_data(area_min=80.0, batch_size=batch_size),
        optim=AdamW(lr=1.5e-4, epochs=800.0, mu_dtype="bfloat16"),
        ema=EmaConfig(rate=1e-4, only_with_labels=True),
        eval={"fewshot": probe} | learned,
    )


FASHION_MNIST = DataSpec("fashion_mnist", 60_000, 10_000, 28, 28, 1, 10)
IMAGENET = DataSpec("imagenet2012", 1_268_355, 50_000, None, None, 3, 1000)
