"""Recipes that train a classifier on the network of another run, with its weights, data and tokenizer."""

import dataclasses
import operator
from collections.abc import Mapping

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.models import ModelConfig
from umd_eqx.models.vit.classifiers import ViTClassifierConfig
from umd_eqx.models.vit.probes import LinearProbeConfig
from umd_eqx.objectives import LinearProbing
from umd_eqx.recipes.config import Config, Start
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.derived import recorded_probe
from umd_eqx.runs.pretrained import Pretrained
from umd_eqx.runs.resolved import Resolved, resolve

OF_THE_RUN = ("source", "train_split", "test_split", "size", "expected")
"""Fields of `DataConfig` that are taken from the run; augmentation and batch sizes are those of the recipe."""

ANY = ("scan", "remat", "dtype")
"""Fields of `ModelConfig` that may differ from the run: they change how the network is computed, not its weights."""


def recipe_on(presets: Mapping[str, Preset], name: str | None, start: Start, source: Pretrained) -> tuple[str, Config]:
    """Returns the name and the recipe of a classifier on a network, including its weights.

    The noise level of a linear probe is that of the run's own few-shot probe, if it has one.

    **Arguments:**

    - `presets`: recipes by name, each with a `LinearProbeConfig` or a `ViTClassifierConfig`.
    - `name`: the preset. None: one whose data are those of the run, otherwise the first.
    - `start`, `source`: the network, as returned by `umd_eqx.runs.finetuning.start_from`.

    **Raises:** `BadInput` naming `from` if the network is not a ViT auto-encoder of this package.
    """
    if not isinstance(source.config, ModelConfig):
        problem = f"{source.config.title} is not an auto-encoder of this package"
        raise BadInput("from", problem, "Use the few-shot probe, which works with every AbstractPatchModel")
    if name is None:
        made_for = {(make().data.expected or source.spec).name: key for key, make in presets.items()}
        name = made_for.get(source.spec.name, next(iter(presets)))
    recipe = presets[name]()
    changes = {"model": _model(recipe, source), "path": source.path, "start": start}
    changes["data"] = dataclasses.replace(recipe.data, **{field: getattr(source.data, field) for field in OF_THE_RUN})
    fewshot = None if source.trained is None else recorded_probe(source.trained)
    if fewshot is not None and isinstance(recipe.objective, LinearProbing):
        changes["objective"] = LinearProbing(fewshot.time)
    if source.latents is not None:
        changes |= {"tokenizer": source.latents.source, "latent": source.latents.spec}
    return name, dataclasses.replace(recipe, **changes)


def resolve_on(config: Config, source: Pretrained) -> Resolved:
    """Resolves a recipe of `recipe_on`, and checks that the weights of `source` fit the network that it builds.

    **Raises:** `BadInput` naming a field of the network that differs from the run, or `from` for other weights; and as
    `umd_eqx.runs.resolved.resolve` does.
    """
    expected = _model(config, source)
    for field in dataclasses.fields(expected.network):
        given, its = map(operator.attrgetter(f"network.{field.name}"), (config.model, expected))
        if given != its and field.name not in ANY:
            problem = f"the network of the run has {its}, not {given}"
            raise BadInput(f"model.network.{field.name}", problem, "Leave it out")
    resolved = resolve(config, source)
    same_data = config.data.source.moved(None) == source.data.source.moved(None)
    spec = source.spec if same_data else resolved.data.spec
    size, _, channels = resolved.config.image_shape(spec)

    def started(key: PRNGKeyArray) -> eqx.Module:
        model = config.model
        return model.start(model.build(size, channels, spec.num_classes, key=key), source.model)

    eqx.filter_eval_shape(started, jax.random.key(0))
    return resolved


def _model(config: Config, source: Pretrained) -> LinearProbeConfig | ViTClassifierConfig:
    """The classifier of a recipe on the network of `source`: frozen with its label embedding, or trained without it."""
    assert isinstance(source.config, ModelConfig)
    if isinstance(config.model, LinearProbeConfig):
        return dataclasses.replace(config.model, network=source.config, network_classes=source.model.num_classes)
    assert isinstance(config.model, ViTClassifierConfig)
    return dataclasses.replace(config.model, network=dataclasses.replace(source.config, labels=False))
