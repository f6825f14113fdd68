"""Estimates the requirements of a run without training."""

import dataclasses

from umd_eqx.core.errors import BadInput
from umd_eqx.core.programs import Memory
from umd_eqx.core.sharding import describe_mesh
from umd_eqx.core.types import DataSpec
from umd_eqx.models.base import num_parameters
from umd_eqx.recipes.build import Built, build
from umd_eqx.recipes.config import Config
from umd_eqx.report.terminal import duration
from umd_eqx.runs.fitting import without_labels
from umd_eqx.runs.memory import ENCODING, STEP, programs
from umd_eqx.runs.resolved import Data, Resolved, resolve
from umd_eqx.training.flops import peak_flops

ASSUMED_MFU = 0.4
"""Model FLOPs utilisation assumed by the time estimate."""


def dry_run(config: Config | Resolved, *, recipe: Config | None = None, limit_steps: int | None = None) -> str:
    """Returns the parameters, FLOPs per step, memory, shapes and time of a run as text.

    Compiles the training step and the programs of the evaluators from shapes; nothing is allocated or executed.

    If the data are not on this machine, the data set description in `recipe` (the preset; None: the configuration
    itself) is used, provided it names the same data; the text mentions this. Raises `BadInput` as a run would.
    """
    resolved, config, spec, note = described(config, recipe)
    built = build(config, spec)
    steps = built.steps(limit_steps)
    config.profile.validate(steps)
    mesh, batch_size = built.parts.mesh, config.data.batch_size
    model = built.abstract_state().model
    image = (batch_size, *config.image_shape(spec))
    memory, evaluations = _memory(built, resolved)
    flops = built.step_flops()
    peak, source = peak_flops()
    seconds = flops / (peak * mesh.size * ASSUMED_MFU)
    latents = ""
    if config.latent is not None:
        latents = f", latents of {config.tokenizer}: {config.data.size} px, downsampled by {config.latent.factor}"
    lines = {
        "data": f"{spec.name}, {spec.num_train:,} to train on, {spec.num_classes} classes{note}",
        "batch": " x ".join(map(str, image)) + latents,
        "parameters": f"{num_parameters(model):,}",
        "steps": f"{steps:,} of a schedule of {built.total:,}, with {built.warmup:,} warmup steps",
        "FLOPs per step": f"{flops / 1e9:,.1f} G",
        "devices": f"{describe_mesh(mesh)}, {peak / 1e12:.3g} TFLOP/s each ({source})",
        "memory": f"{memory.arguments / 1e9:.2f} GB of state and batch on each device, "
        f"{memory.temporaries / 1e9:.2f} GB more during a step (compiled for this machine)",
        "memory of evaluations": evaluations,
        "time": f"{duration(seconds * steps)} at {ASSUMED_MFU:.0%} of the peak, {seconds * 1e3:,.0f} ms per step, "
        "excluding evaluation",
    }
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in lines.items() if value)


def described(config: Config | Resolved, recipe: Config | None = None) -> tuple[Resolved, Config, DataSpec, str]:
    """Returns what a run looks up, its configuration for the data, their description, and a note on what is absent.

    The arguments and errors are those of `dry_run`: the data, and the tokenizer of `recipe`, may be elsewhere.
    """
    found = config if isinstance(config, Resolved) else None
    asked = config.config if isinstance(config, Resolved) else config
    recipe = asked if recipe is None else recipe
    if found is None:
        asked = dataclasses.replace(asked, data=asked.data.located(recipe.data))
    data = Data(asked.data) if found is None else found.data
    spec, note = _spec(asked, recipe, data)
    resolved, missing = _resolved(asked, recipe, data) if found is None else (found, "")
    config, left_out = without_labels(resolved.config, spec)
    note += missing + (f" (without labels: no {' and '.join(left_out)})" if left_out else "")
    return resolved, config, spec, note


def _spec(config: Config, recipe: Config, data: Data) -> tuple[DataSpec, str]:
    try:
        return data.spec, ""
    except BadInput as error:
        asked, known = ((it.source, it.train_split, it.test_split) for it in (config.data, recipe.data))
        # No folder was given, so the error is that the data are missing.
        missing = error.field == "data.source.dir" and config.data == config.data.moved(None)
        if recipe.data.expected is None or asked != known or not missing:
            raise
        return recipe.data.expected, " (not on this machine: as described by the recipe)"


def _resolved(config: Config, recipe: Config, data: Data) -> tuple[Resolved, str]:
    try:
        return resolve(config, data=data), ""
    except BadInput as error:
        # The recipe records the latent shape of its own tokenizer.
        if recipe.latent is None or error.field != "tokenizer" or config.tokenizer != recipe.tokenizer:
            raise
        without = dataclasses.replace(config.data, latents=None)
        note = f" ({config.tokenizer} is not on this machine)"
        return Resolved(dataclasses.replace(config, data=without), data), note


def _memory(built: Built, resolved: Resolved) -> tuple[Memory, str]:
    """The memory of a step, and a description of the largest evaluation's; empty if there is none."""
    parts = programs(built, None if resolved.latents is None else resolved.latents.tokenizer)
    (step,) = parts.pop(STEP).values()
    parts.pop(ENCODING, None)  # bounded for any batch size
    found = {part: max(p.memory().total for p in some.values()) for part, some in parts.items() if some}
    if not found:
        return step.memory(), ""
    largest = max(found, key=lambda part: found[part])
    return step.memory(), f"up to {found[largest] / 1e9:.2f} GB on each device beside the state ({largest})"
