"""Fine-tuning recipes for runs without a published one, derived from the run's training configuration."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from umd_eqx.core.predictions import LEARNED_WITHOUT_NOISE
from umd_eqx.eval import AbstractEvaluator, Denoising, FewShot, Generation, Reconstruction
from umd_eqx.objectives import AbstractObjective, Unified, denoising, masked_reconstruction
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.recipes.dump import load
from umd_eqx.recipes.pretrain import PUBLISHED_NOISY_TIME, objective_evaluators
from umd_eqx.runs.pretrained import Pretrained, recorded_objective
from umd_eqx.sampling import DDIM, DPMSolverPP
from umd_eqx.training.optim import AbstractOptimiser, EmaConfig

CLEAN_FRACTION = 1 / 16
"""Fraction of a batch trained on reconstruction. Published: 1/20; 1/16 divides evenly into micro-batches."""

EPOCH_DIVISOR = 16
"""Ratio of pre-training to fine-tuning length for schedules in epochs: 800 to 50, as published."""

STEP_FACTOR = 1.5
"""Ratio of fine-tuning to pre-training length for schedules in steps: 3,000 to 2,000, as in the small recipes."""


def derived_recipe(source: Pretrained, trained: Mapping[str, Any], types: Iterable[type] = ()) -> Config:
    """Derives a recipe that fine-tunes a network into a class-conditional generator, whatever its training objective.

    The data, network, path, tokenizer, learning rate, batch size and intervals are those of the run. The changes are
    those of arXiv 2406.17688 and its code: labels, no hidden patches in noised images, beta2 0.999, no weight
    decay, averaged weights, and crops of at least 95 % of an image. If the run was trained on clean images, a fraction
    `CLEAN_FRACTION` of each batch is still reconstructed. The length follows from the run's by `EPOCH_DIVISOR` or
    `STEP_FACTOR`.

    **Arguments:**

    - `source`: the network.
    - `trained`: the configuration of its run, as written by `umd_eqx.recipes.dump`. The evaluators may be user-defined
        classes, since they are not loaded.
    - `types`: user-defined classes, for the optimiser and the objective. An objective that cannot be read counts as one
        that sees clean images.

    **Raises:** `BadInput` if the optimiser or the intervals cannot be read.
    """
    optim: AbstractOptimiser = load(trained["optim"], types)
    objective: AbstractObjective = denoising()
    if _saw_clean_images(source, trained, types):
        objective = Unified(denoising(), masked_reconstruction(), no_noise_prob=CLEAN_FRACTION)
    epochs = None if optim.epochs is None else optim.epochs / EPOCH_DIVISOR
    steps = None if optim.steps is None else round(STEP_FACTOR * optim.steps)
    checkpoint: CheckpointConfig = load(trained["checkpoint"])
    log: LogConfig = load(trained["log"])
    return Config(
        model=dataclasses.replace(source.config, labels=True),
        objective=objective,
        path=source.path,
        data=_data(source.data, optim),
        optim=_changed(optim, epochs=epochs, steps=steps, warmup=0.05, beta2=0.999, weight_decay=0.0),
        tokenizer=None if source.latents is None else source.latents.source,
        latent=None if source.latents is None else source.latents.spec,
        # Over this many steps, the rate leaves 0.2 % of the initial weights in the average.
        ema=EmaConfig(rate=1e-4) if steps is None else EmaConfig(rate=min(0.5, 6 / steps), batch_size=None),
        eval=_evaluators(source, trained, objective, steps),
        checkpoint=checkpoint,
        log=LogConfig(every=log.every),
    )


def recorded_probe(trained: Mapping[str, Any]) -> FewShot | None:
    """The few-shot probe in a run's configuration, given as a dump; None if it has none.

    Raises `BadInput` if the settings of the probe cannot be read.
    """
    evaluators = trained.get("eval") or {}
    return next((load(dumped) for dumped in evaluators.values() if dumped["type"] == FewShot.__name__), None)


def _saw_clean_images(source: Pretrained, trained: Mapping[str, Any], types: Iterable[type]) -> bool:
    objective = recorded_objective(trained, types)
    learnable = source.model.prediction in LEARNED_WITHOUT_NOISE
    return learnable and (objective is None or objective.sees_clean_images)


def _changed(optim: AbstractOptimiser, **fields: Any) -> AbstractOptimiser:
    """Replaces those of the fields that the optimiser has; not all optimisers have two betas, for example."""
    names = {field.name for field in dataclasses.fields(optim)}
    return dataclasses.replace(optim, **{name: value for name, value in fields.items() if name in names})


def _data(data: DataConfig, optim: AbstractOptimiser) -> DataConfig:
    # Round up so that a sixteenth of each micro-batch is a whole number of images.
    least = round(1 / CLEAN_FRACTION) * optim.accumulate
    batch_size = -(-data.batch_size // least) * least
    # Stored latents have a different augmentation, so images are encoded on the fly instead.
    return dataclasses.replace(data, area_min=max(data.area_min, 95.0), batch_size=batch_size, latents=None)


def _evaluators(
    source: Pretrained, trained: Mapping[str, Any], objective: AbstractObjective, steps: int | None
) -> dict[str, AbstractEvaluator]:
    probe = recorded_probe(trained) or FewShot(l2=None, test_images=5000, raw_pixels=False)
    clip = source.latents is None
    if steps is None:
        sampler = DDIM(steps=125, eta=1.0, clip=clip)
        reconstruction, noised = Reconstruction(every=25_000), Denoising(every=25_000)
        probed, generated, samples = 10_000, 25_000, 10_240
    else:
        sampler = DPMSolverPP(steps=16, head="v", clip=clip)
        reconstruction, noised = Reconstruction(every=steps, images=250), Denoising(every=steps, images=125)
        probed, generated, samples = steps, max(1, steps // 3), 200
    time = 0.0 if isinstance(objective, Unified) else PUBLISHED_NOISY_TIME
    return {
        "fewshot": dataclasses.replace(probe, every=probed, time=time),
        **objective_evaluators(objective, reconstruction, noised),
        "generation": Generation(every=generated, samples=samples, sampler=sampler),
    }
