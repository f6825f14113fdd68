"""A fine-tuning recipe for a run that none was published for, derived from how the run was trained."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from umd_eqx.eval import AbstractEvaluator, Denoising, FewShot, Generation, Reconstruction
from umd_eqx.objectives import AbstractObjective, Unified, denoising, masked_reconstruction
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.recipes.dump import load
from umd_eqx.recipes.pretrain import PUBLISHED_NOISY_TIME, what_it_learns
from umd_eqx.runs.pretrained import Pretrained
from umd_eqx.sampling import DDIM, DPMSolverPP
from umd_eqx.training.optim import AbstractOptimiser, EmaConfig

CLEAN_SHARE = 1 / 16
"""Share of a batch that still reconstructs. Published is a twentieth; a sixteenth divides over micro-batches."""

SHORTER = 16
"""By how much fine-tuning is shorter where the schedule is in epochs: 50 for 800, as published."""

LONGER = 1.5
"""By how much it is longer where the schedule is in steps: 3,000 for 2,000, as in the recipes of the shipped images."""


def derived_recipe(source: Pretrained, trained: Mapping[str, Any], types: Iterable[type] = ()) -> Config:
    """The recipe that makes a class-conditional generator of a network, whatever it was trained for.

    Data, network, path, tokenizer, learning rate, batch and intervals are those of the run. What fine-tuning changes is
    as published (reference.md, section 4): labels, nothing hidden of a noised image, beta2 0.999, no weight decay, an
    average of the weights, crops of at least 95 % of an image. Where the run has seen clean images, a few of each batch
    still are reconstructed. Its length is `SHORTER` or `LONGER` than the run's.

    **Arguments:**

    - `source`: the network.
    - `trained`: the configuration of its run, as `umd_eqx.recipes.dump` writes it. The objective and the evaluators may
        be a reader's own classes: these are not loaded.
    - `types`: the reader's own, of which its optimiser may be.

    **Raises:** `BadInput` for an optimiser or intervals that cannot be read.
    """
    optim: AbstractOptimiser = load(trained["optim"], types)
    clean = sees_clean_images(trained["objective"])
    objective: AbstractObjective = denoising()
    if clean:
        objective = Unified(denoising(), masked_reconstruction(), no_noise_prob=CLEAN_SHARE)
    epochs = None if optim.epochs is None else optim.epochs / SHORTER
    steps = None if optim.steps is None else round(LONGER * optim.steps)
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
        # Over so many steps this rate leaves 0.2 % of the first weights.
        ema=EmaConfig(rate=1e-4) if steps is None else EmaConfig(rate=min(0.5, 6 / steps), batch_size=None),
        eval=_evaluators(source, trained, objective, steps),
        checkpoint=checkpoint,
        log=LogConfig(every=log.every),
    )


def sees_clean_images(objective: Mapping[str, Any]) -> bool:
    """Whether a network trained by an objective, given as a dump, has seen images without noise.

    True for an objective that this package does not know.
    """
    match objective.get("type"):
        case "MaskedDenoising":
            return not objective["noised"]
        case "Unified":
            return objective["no_noise_prob"] > 0
        case _:
            return True


def recorded_probe(trained: Mapping[str, Any]) -> FewShot | None:
    """The few-shot probe among the evaluators of a run's configuration, given as a dump; None where there is none.

    Raises `BadInput` where its settings cannot be read.
    """
    evaluators = trained.get("eval") or {}
    return next((load(dumped) for dumped in evaluators.values() if dumped["type"] == FewShot.__name__), None)


def _changed(optim: AbstractOptimiser, **fields: Any) -> AbstractOptimiser:
    """With those of the fields that this optimiser has: not every one has two betas."""
    names = {field.name for field in dataclasses.fields(optim)}
    return dataclasses.replace(optim, **{name: value for name, value in fields.items() if name in names})


def _data(data: DataConfig, optim: AbstractOptimiser) -> DataConfig:
    # Whole batches of which a sixteenth can be told apart in each micro-batch.
    least = round(1 / CLEAN_SHARE) * optim.accumulate
    batch_size = -(-data.batch_size // least) * least
    # Stored latents are those of another augmentation; images are encoded on the way instead.
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
        **what_it_learns(objective, reconstruction, noised),
        "generation": Generation(every=generated, samples=samples, sampler=sampler),
    }
