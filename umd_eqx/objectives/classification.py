"""Supervised training with the cross-entropy of labelled images."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Metrics, Scalar
from umd_eqx.models.extractors.classifier import AbstractClassifier
from umd_eqx.objectives.base import AbstractCleanObjective
from umd_eqx.objectives.mixing import PAIR, Mixing, draw_mixing, mix


class ClassificationDraw(NamedTuple):
    """The random numbers for a batch, one entry per image: the key of the network, and the mixing (None: none)."""

    keys: Key[Array, "b"]
    mixing: Mixing | None


class Classification(AbstractCleanObjective):
    """The mean of -log p(label) over a batch, and `accuracy`, the share of its images that are classified correctly.

    Trains an `AbstractClassifier`. With label smoothing s the target is 1 - s + s / classes for the label and
    s / classes for every other class (Szegedy et al. 2016, section 7). The embedded classifier is trained without it:
    distances are measured between its features, and smoothing contracts the features of each class (Mueller et al.
    2019, figure 1).

    With `mixup` or `cutmix`, each image is mixed with its neighbour in the batch, and so are their targets
    (`umd_eqx.objectives.mixing`). An image is classified correctly if the largest target is the most probable class.
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)
    """Share of the target distribution, in [0, 1), that is spread evenly over all classes."""
    mixup: float = eqx.field(static=True, default=0.0)
    """Parameter of the Beta distribution of mixup. 0: no mixup."""
    cutmix: float = eqx.field(static=True, default=0.0)
    """Parameter of the Beta distribution of CutMix. 0: no CutMix. With both, each image is mixed in one of the ways."""

    @property
    def needs_labels(self) -> bool:
        """Always True: the labels are the targets."""
        return True

    def draw(
        self, key: PRNGKeyArray, model: AbstractClassifier, path: AbstractPath, shape: tuple[int, ...]
    ) -> ClassificationDraw:
        """Draws the key of each image, and its mixing if there is any."""
        mixing_key, model_key = jax.random.split(key)
        mixing = draw_mixing(mixing_key, shape, self.mixup, self.cutmix) if self._mixes else None
        return ClassificationDraw(jax.random.split(model_key, shape[0]), mixing)

    def loss(
        self, model: AbstractClassifier, path: AbstractPath, batch: Batch, draw: ClassificationDraw
    ) -> tuple[Scalar, Metrics]:
        """Returns the mean cross-entropy in nats, and `accuracy` in [0, 1]. `path` is unused: images are clean."""
        images, label, mixing = jnp.asarray(batch.image), jnp.asarray(batch.label), draw.mixing
        if mixing is not None:
            images = mix(images, mixing.pixels[..., None])
        logits = jax.vmap(model.training_logits)(images, draw.keys)
        target = jax.nn.one_hot(label, logits.shape[1], dtype=logits.dtype)
        if mixing is not None:
            target = mix(target, mixing.own[:, None])
        correct = jnp.argmax(logits, axis=1) == jnp.argmax(target, axis=1)
        losses = optax.losses.softmax_cross_entropy(logits, optax.losses.smooth_labels(target, self.label_smoothing))
        return jnp.mean(losses), {"accuracy": jnp.mean(correct.astype(jnp.float32))}

    def period(self, batch_size: int) -> int:
        """2 if images are mixed in pairs, otherwise 1: all images are treated alike."""
        return PAIR if self._mixes else 1

    @property
    def _mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def require_suitable(self, model: Any, path: AbstractPath) -> None:
        """Raises `BadInput` naming `model` unless it is an `AbstractClassifier`."""
        if not isinstance(model, AbstractClassifier):
            problem = f"{type(model).__name__} does not classify images"
            raise BadInput("model", problem, "Use an AbstractClassifier, or another objective")

    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` for a label smoothing outside [0, 1), negative parameters, and an odd batch to mix."""
        for name in ("mixup", "cutmix"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise BadInput(f"objective.{name}", f"{getattr(self, name)} is not valid", "Use 0 or more")
        if self._mixes and batch_size % PAIR:
            raise BadInput("data.batch_size", f"{batch_size} images cannot be mixed in pairs", "Use an even number")
        if not 0.0 <= self.label_smoothing < 1.0:
            problem = f"{self.label_smoothing} is outside [0, 1)"
            raise BadInput("objective.label_smoothing", problem, "Use 0, or a small share such as 0.1")
