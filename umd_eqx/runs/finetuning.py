"""Fine-tuning recipes, adapted to the run that provides the initial weights."""

import dataclasses
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import same_tokenizer
from umd_eqx.models import AbstractModel, ModelConfig
from umd_eqx.models.vit.warm_start import warm_start
from umd_eqx.recipes.config import Config, Start
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.derived import derived_recipe
from umd_eqx.runs.pretrained import Pretrained, Weights, from_pretrained
from umd_eqx.runs.resolved import Resolved, resolve

MATCHING_FIELDS = (
    *("variant", "conditioning", "class_tokens", "registers", "prediction"),
    *("block.rotary", "block.qk_norm", "block.mlp"),
)
"""Fields that must match the source: otherwise its weights would not fit, or would have another meaning."""


def start_from(path: str | os.PathLike[str], weights: Weights, types: Iterable[type] = ()) -> tuple[Start, Pretrained]:
    """Loads the network at `path`, and returns it with the `Start` that refers to it in a configuration.

    **Arguments:**

    - `path`: a run directory or an export.
    - `weights`: for a run, the raw weights or their average.
    - `types`: user-defined classes that the run's configuration may contain.

    **Raises:** `BadInput` naming `from` as `from_pretrained` does.
    """
    source = from_pretrained(path, weights=weights, field="from", types=types)
    return Start(os.fspath(path), weights, source.digest), source


def follow(
    presets: Mapping[str, Preset],
    name: str | None,
    start: Start,
    source: Pretrained,
    types: Iterable[type] = (),
) -> tuple[str, Config]:
    """The recipe for fine-tuning a network: its name, and its configuration including the initial weights.

    **Arguments:**

    - `presets`: recipes by name.
    - `name`: the preset to use unchanged. None: the preset for the source's system, with the source's network, path and
        data; if there is none, a recipe derived from the run (`derived_recipe`).
    - `start`, `source`: as returned by `start_from`.
    - `types`: user-defined classes that the run's configuration may contain.

    **Raises:** `BadInput` if there is no recipe for the system of an export, or for any network of its type.
    """
    if not isinstance(source.config, ModelConfig):
        problem = f"there is no fine-tuning recipe for {source.config.title}"
        raise BadInput("from", problem, "Write one: a Config with a Start (umd_eqx.recipes.config.Start)")
    if name is not None:
        return name, dataclasses.replace(presets[name](), start=start)
    if source.config.prediction == "u":
        problem = "there is no fine-tuning recipe for a network of average velocities"
        raise BadInput("from", problem, "Train it with labels (preset mean-flow)")
    name = source.preset if source.preset in presets else f"{source.preset.removesuffix('-ft')}-ft"
    if name not in presets and source.trained is not None:
        return name, dataclasses.replace(derived_recipe(source, source.trained, types), start=start)
    if name not in presets:
        problem = f"there is no recipe {name!r} for the weights in {start.source}"
        hint = f"Pass the run that they were exported from, or start with one of these presets: {', '.join(presets)}"
        raise BadInput("preset", problem, hint)
    recipe = presets[name]()
    kept = ("source", "train_split", "test_split", "size", "expected")
    data = dataclasses.replace(recipe.data, **{field: getattr(source.data, field) for field in kept})
    model = dataclasses.replace(source.config, labels=True)
    recipe = dataclasses.replace(recipe, model=model, path=source.path, data=data, start=start)
    if source.latents is None:
        return name, dataclasses.replace(recipe, tokenizer=None, latent=None)
    return name, dataclasses.replace(recipe, tokenizer=source.latents.source, latent=source.latents.spec)


def resolve_fitting(config: Config, source: Pretrained) -> Resolved:
    """Resolves a configuration that starts from `source`, and checks that the weights fit the network that it builds.

    **Raises:** `BadInput` listing the fields that differ; also if the path or the channels of the data differ from the
    source's, and as `umd_eqx.runs.resolved.resolve` does.
    """
    assert isinstance(source.config, ModelConfig)
    pairs = {name: tuple(map(operator.attrgetter(name), (source.config, config.model))) for name in MATCHING_FIELDS}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if different and config.start is not None:
        said = "; ".join(
            f"`model.{name}` is {there} there and {here} here" for name, (there, here) in different.items()
        )
        hint = "Use the preset of that network, or no preset: the recipe then follows the source"
        raise BadInput("from", f"{config.start.source} holds a different network: {said}", hint)
    if config.path != source.path:
        problem = f"it was trained on {type(source.path).__name__}, but the recipe has {type(config.path).__name__}"
        raise BadInput("from", problem, "Omit the preset: the recipe then follows the source")
    resolved = resolve(config, source)
    config = resolved.config
    made_by = None if source.latents is None else source.latents.spec.digest
    if not same_tokenizer(made_by, None if config.latent is None else config.latent.digest):
        kind = "pixels" if source.latents is None else f"the latents of {source.latents.source}"
        problem = f"it was trained on {kind}, but the recipe has {config.tokenizer or 'pixels'}"
        raise BadInput("from", problem, "Omit the preset: the recipe then follows the source")
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
    """The default directory of a fine-tuning run: beside its source, with `-ft` appended; for an export, in `runs/`."""
    location = Path(path)
    if location.name in ("", ".."):
        location = Path(os.path.abspath(path))
    return location.parent / f"{location.name}-ft" if location.is_dir() else Path("runs") / f"{location.stem}-ft"
