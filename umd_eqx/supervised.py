"""Supervised training of the small classifier: cross-entropy over augmented images, with AdamW."""

import dataclasses
import math
from collections.abc import Callable
from itertools import islice

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from umd_eqx.data.loader import evaluation_batches, training_batches
from umd_eqx.data.source import DataSource
from umd_eqx.data.transforms import EvalTransform, TrainTransform
from umd_eqx.errors import BadInput
from umd_eqx.models.classifier import SIDE, FashionClassifier
from umd_eqx.models.extractor import AbstractExtractor
from umd_eqx.optim import schedule
from umd_eqx.optimisers import AdamW
from umd_eqx.programs import Program, is_shape
from umd_eqx.types import Batch, DataSpec, Label, Metrics, Scalar

MEASURED_AT_ONCE = 250
"""Images of a batch of `accuracy`."""


@dataclasses.dataclass(frozen=True)
class ClassifierRecipe:
    """All that a trained classifier depends on, besides the data."""

    steps: int = 14_000
    """How long to train."""
    seed: int = 0
    """Of the first weights, the order of the images and their augmentation."""
    batch_size: int = 64
    """Images in a step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW: linear from 0, then cosine to 0."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on everything but biases."""
    area_min: float = 90.0
    """Smallest area of the random crop, in percent; 100 is the centre crop of the evaluations."""
    flip: bool = True
    """Mirror one image in two."""

    def validate(self) -> None:
        """Raises `BadInput` naming the flag of a value that cannot work."""
        for name in ("steps", "batch_size", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(_flag(name), f"{getattr(self, name)} is not positive", "Use a positive number")
        if not 0 <= self.warmup < 1:
            raise BadInput("--warmup", f"{self.warmup} is outside [0, 1)", "Use a share below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise BadInput("--weight-decay", f"{self.weight_decay} cannot work", "Use 0 or more")
        if not 0 < self.area_min <= 100:
            raise BadInput("--area-min", f"{self.area_min} is no such percentage", "Use more than 0, up to 100")
        if not 0 <= self.seed < 2**32:
            raise BadInput("--seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW with its learning rate over `steps`."""
        config = AdamW(
            *(self.lr, None, None, self.steps), warmup=self.warmup, beta2=0.99, weight_decay=self.weight_decay
        )
        return config.transformation(schedule(config, 0, self.batch_size))


def objective(model: AbstractExtractor, batch: Batch) -> tuple[Scalar, Metrics]:
    """The mean of -log p(label) over images in [-1, 1], and `accuracy`, the share that is recognised.

    Labels are not smoothed: that draws the images of a class together (Mueller et al. 2019, figure 1), and distances
    are taken between these features.
    """
    logits, label = _logits(model, batch.image), jnp.asarray(batch.label)
    loss = jnp.mean(jax.vmap(_cross_entropy)(logits, label))
    return loss, {"loss": loss, "accuracy": jnp.mean(jnp.argmax(logits, axis=1) == label)}


def train_classifier(
    recipe: ClassifierRecipe,
    source: DataSource,
    progress: Callable[[int, Metrics], None] = lambda step, metrics: None,
    *,
    threads: int = 2,
) -> FashionClassifier:
    """A classifier trained from its first weights.

    **Arguments:**

    - `recipe`: valid.
    - `source`: grey images, of any size.
    - `progress`: told of each step that is done, and its `loss` and `accuracy` as arrays on the device.
    - `threads`: that read images.

    **Raises:** `BadInput` for images with colours, and `ValueError` if the loss was not finite at the end.
    """
    if source.spec.channels != 1:
        problem = f"{source.spec.name} has {source.spec.channels} channels"
        raise BadInput("--data-name", problem, "Take grey images: the classifier is made for them")
    model = FashionClassifier.init(source.spec.num_classes, key=jax.random.key(recipe.seed))
    opt_state = recipe.optimiser().init(eqx.filter(model, eqx.is_inexact_array))
    transform = TrainTransform(SIDE, recipe.area_min, recipe.flip)
    batches = training_batches(source, transform, batch_size=recipe.batch_size, seed=recipe.seed, threads=threads)
    metrics: Metrics = {}
    for step, batch in enumerate(islice(batches, recipe.steps), start=1):
        model, opt_state, metrics = _update((recipe, batch), (model, opt_state))
        progress(step, metrics)
    batches.close()
    if not jnp.isfinite(metrics["loss"]):
        raise ValueError("the loss is no longer finite: lower the learning rate")
    return model


def accuracy(
    model: AbstractExtractor, source: DataSource, *, batch_size: int = MEASURED_AT_ONCE, threads: int = 2
) -> float:
    """The share of the images of a source that a classifier of 28 x 28 images recognises."""
    right = total = 0
    for batch in evaluation_batches(source, EvalTransform(SIDE), batch_size, threads=threads):
        right += int(jnp.sum((_predict(model, batch.image) == batch.label) & batch.valid))
        total += int(batch.valid.sum())
    return right / max(total, 1)


def classifier_programs(recipe: ClassifierRecipe, spec: DataSpec) -> dict[str, Program]:
    """What `train_classifier` and `accuracy` compile, by shapes alone: `step` and `accuracy`."""
    model = eqx.filter_eval_shape(FashionClassifier.init, spec.num_classes, key=jax.random.key(recipe.seed))
    opt_state = eqx.filter_eval_shape(recipe.optimiser().init, eqx.filter(model, is_shape))

    def batch(count: int) -> Batch:
        return Batch(jnp.zeros((count, SIDE, SIDE, 1)), jnp.zeros(count, jnp.int32), jnp.zeros(count, bool))

    trained, measured = (eqx.filter_eval_shape(batch, count) for count in (recipe.batch_size, MEASURED_AT_ONCE))
    return {
        "step": Program(_update, ((recipe, trained), (model, opt_state)), donated=(1,)),
        "accuracy": Program(_predict, (model, measured.image)),
    }


def _logits(model: AbstractExtractor, images: Array | np.ndarray) -> Float[Array, "b classes"]:
    return jax.vmap(model)((jnp.asarray(images) + 1.0) * 127.5).logits


def _cross_entropy(logits: Float[Array, "classes"], label: Label) -> Scalar:
    return -jax.nn.log_softmax(logits)[label]


@eqx.filter_jit
def _predict(model: AbstractExtractor, images: Array | np.ndarray) -> Int[Array, "b"]:
    return jnp.argmax(_logits(model, images), axis=1)


# Given the recipe, which is equal to itself, and not its optimiser, which is a new function each time it is made: the
# step is compiled once for all runs of a recipe.
@eqx.filter_jit(donate="all-except-first")
def _update(
    given: tuple[ClassifierRecipe, Batch], state: tuple[FashionClassifier, PyTree]
) -> tuple[FashionClassifier, PyTree, Metrics]:
    (recipe, batch), (model, opt_state) = given, state
    (_, metrics), grads = eqx.filter_value_and_grad(objective, has_aux=True)(model, batch)
    updates, opt_state = recipe.optimiser().update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), opt_state, metrics


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
