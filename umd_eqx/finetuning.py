"""Fine-tuning for class-conditional generation: the recipes, and how one follows the run that it starts from.

Labels in, fresh label table and label MLP, fresh optimiser, no mask on noised images (reference.md, section 4).
"""

import dataclasses
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from umd_eqx.config import CheckpointConfig, Config, DataConfig, LogConfig, Start
from umd_eqx.data.source_configs import TFDS
from umd_eqx.derived import derived_recipe
from umd_eqx.errors import BadInput
from umd_eqx.eval import Denoising, FewShot, Generation, Reconstruction
from umd_eqx.models import AbstractModel, ModelConfig
from umd_eqx.models.warm_start import warm_start
from umd_eqx.objectives import AbstractObjective, Unified, denoising, masked_reconstruction
from umd_eqx.optim import EmaConfig
from umd_eqx.optimisers import AdamW
from umd_eqx.paths import CosineTable
from umd_eqx.presets import (
    FASHION_MNIST,
    IMAGENET,
    PUBLISHED_NOISY_TIME,
    PUBLISHED_SAMPLER,
    SMALL_SAMPLER,
    Preset,
    published_latents,
    small_latents,
    what_it_learns,
)
from umd_eqx.pretrained import Pretrained, Weights, from_pretrained
from umd_eqx.resolved import Resolved, resolve
from umd_eqx.types import same_tokenizer

SAME_NETWORK = (
    *("variant", "conditioning", "class_tokens", "registers", "prediction"),
    *("block.rotary", "block.qk_norm", "block.mlp"),
)
"""What must be as in the source: its weights would not fit, or mean something else."""


def umd_ft() -> Config:
    """UMD on the shipped images, fine-tuned with labels; 5 % of each batch still reconstructed."""
    return _small(_mostly_denoising())


def mae_ft() -> Config:
    """MAE on the shipped images, fine-tuned with labels; 5 % of each batch still reconstructed."""
    return _with_token(_small(_mostly_denoising()))


def dit_ft() -> Config:
    """DiT on the shipped images, fine-tuned with labels."""
    return _small(denoising(), PUBLISHED_NOISY_TIME)


def maskdit_ft() -> Config:
    """MaskDiT on the shipped images, fine-tuned with labels and without a mask."""
    return _small(denoising(), PUBLISHED_NOISY_TIME)


def dit_scratch() -> Config:
    """DiT on the shipped images, with labels from the first step: the line that fine-tuning has to beat."""
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
    """DiT-B/4 on ImageNet at 64 px with labels from scratch: the published 400 epochs of its latent sister."""
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
"""The presets of `experiments/finetune.py`. Those that end in -ft start from trained weights, the others do not."""


def starts_from_weights(preset: str) -> bool:
    """Whether a recipe asks for `--from`."""
    return not preset.endswith("-scratch")


def start_from(path: str | os.PathLike[str], weights: Weights, types: Iterable[type] = ()) -> tuple[Start, Pretrained]:
    """What lies at `path`, and how a configuration names it as the weights to start from.

    **Arguments:**

    - `path`: a run directory or an export.
    - `weights`: of a run, the weights or their average.
    - `types`: the reader's own, of which the run may be made.

    **Raises:** `BadInput` naming `--from` as `from_pretrained` does.
    """
    source = from_pretrained(path, weights=weights, field="--from", types=types)
    return Start(os.fspath(path), weights, source.digest), source


def follow(
    presets: Mapping[str, Preset],
    name: str | None,
    start: Start,
    source: Pretrained,
    types: Iterable[type] = (),
) -> tuple[str, Config]:
    """The recipe for fine-tuning a network: its name, and its configuration with the weights to start from.

    **Arguments:**

    - `presets`: recipes by name.
    - `name`: one of them, which is then taken as it is; None takes the one that belongs to the source's system, with
        the source's network, path and data, or derives one from the run where there is none (`derived_recipe`).
    - `start`, `source`: what `start_from` gives.
    - `types`: the reader's own, of which the run may be made.

    **Raises:** `BadInput` where there is no recipe for the system of an export.
    """
    if not isinstance(source.config, ModelConfig):
        problem = f"there is no fine-tuning recipe for {source.config.title}"
        raise BadInput("--from", problem, "Write one: a Config with `start` (umd_eqx.config.Start)")
    if name is not None:
        return name, dataclasses.replace(presets[name](), start=start)
    name = source.preset if source.preset in presets else f"{source.preset.removesuffix('-ft')}-ft"
    if name not in presets and source.trained is not None:
        return name, dataclasses.replace(derived_recipe(source, source.trained, types), start=start)
    if name not in presets:
        problem = f"there is no recipe {name!r} for what lies in {start.source}"
        way_out = f"Give the run that it was exported from, or put one of these first: {', '.join(presets)}"
        raise BadInput("preset", problem, way_out)
    recipe = presets[name]()
    kept = ("source", "train_split", "test_split", "size", "expected")
    data = dataclasses.replace(recipe.data, **{field: getattr(source.data, field) for field in kept})
    model = dataclasses.replace(source.config, labels=True)
    recipe = dataclasses.replace(recipe, model=model, path=source.path, data=data, start=start)
    if source.latents is None:
        return name, dataclasses.replace(recipe, tokenizer=None, latent=None)
    return name, dataclasses.replace(recipe, tokenizer=source.latents.source, latent=source.latents.spec)


def resolve_fitting(config: Config, source: Pretrained) -> Resolved:
    """Resolves a configuration that starts from `source`, whose weights must fit the network that it builds.

    **Raises:** `BadInput`, field by field, where they do not; also for another path than the source's, for data with
    other channels, and as `umd_eqx.resolved.resolve` does.
    """
    assert isinstance(source.config, ModelConfig)
    pairs = {name: tuple(map(operator.attrgetter(name), (source.config, config.model))) for name in SAME_NETWORK}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if different and config.start is not None:
        said = "; ".join(
            f"--model.{name.replace('_', '-')} is {there} there and {here} here"
            for name, (there, here) in different.items()
        )
        way_out = "Take the preset of that network, or none: the recipe then follows the source"
        raise BadInput("--from", f"{config.start.source} holds another network: {said}", way_out)
    if config.path != source.path:
        problem = f"it was trained on {type(source.path).__name__}, the recipe has {type(config.path).__name__}"
        raise BadInput("--from", problem, "Name no preset: the recipe then follows the source")
    resolved = resolve(config, source)
    config = resolved.config
    made_by = None if source.latents is None else source.latents.spec.digest
    if not same_tokenizer(made_by, None if config.latent is None else config.latent.digest):
        kind = "pixels" if source.latents is None else f"the latents of {source.latents.source}"
        problem = f"it was trained on {kind}, the recipe has {config.tokenizer or 'pixels'}"
        raise BadInput("--from", problem, "Name no preset: the recipe then follows the source")
    same_data = config.data.source.moved(None) == source.data.source.moved(None)
    spec = source.spec if same_data else resolved.data.spec
    size, _, channels = config.image_shape(spec)
    config.model.validate(size)

    def started(key: PRNGKeyArray) -> AbstractModel:
        fresh = config.model.build(size, channels, spec.num_classes, key=key)
        assert isinstance(fresh, AbstractModel)
        return warm_start(fresh, source.model)

    eqx.filter_eval_shape(started, jax.random.key(0))
    return resolved


def finetuned_dir(path: str | os.PathLike[str]) -> Path:
    """Where a fine-tuning run is kept by default: beside its source, with `-ft`; for an export, in `runs/`."""
    place = Path(path)
    if place.name in ("", ".."):
        place = Path(os.path.abspath(path))
    return place.parent / f"{place.name}-ft" if place.is_dir() else Path("runs") / f"{place.stem}-ft"


def _mostly_denoising() -> AbstractObjective:
    return Unified(denoising(), masked_reconstruction(), no_noise_prob=0.05)


def _with_token(config: Config) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, conditioning="token"))


def _small(objective: AbstractObjective, time: float = 0.0) -> Config:
    steps = 3000
    # The published rate would leave 93 % of the first weights after so many steps of 64 images; this leaves 0.2 %.
    ema = EmaConfig(rate=2e-3, batch_size=None)
    learned = what_it_learns(objective, Reconstruction(every=steps, images=250), Denoising(every=steps, images=125))
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
        **what_it_learns(objective, Reconstruction(every=25_000), Denoising(every=25_000)),
        "generation": Generation(every=25_000, samples=10_240, sampler=PUBLISHED_SAMPLER),
    }
    return Config(
        model=ModelConfig(
            variant="B/4", conditioning="adaln", class_tokens=4, class_token_std=0.0, labels=True, remat="full"
        ),
        objective=objective,
        path=CosineTable(),
        data=DataConfig(
            source=TFDS("imagenet2012"),
            train_split="train[:99%]",
            test_split="validation",
            size=64,
            area_min=95.0,
            flip=True,
            batch_size=256,
            eval_batch_size=1024,
            expected=IMAGENET,
        ),
        optim=AdamW(lr=1.5e-4, epochs=epochs, beta2=0.999, weight_decay=0.0, mu_dtype="bfloat16"),
        ema=EmaConfig(rate=1e-4, only_with_labels=True),
        eval=evaluators,
    )
