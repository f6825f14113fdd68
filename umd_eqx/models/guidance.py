"""Guidance as wrappers of a model: a guided model is a model, so that they compose, and no sampler knows of them."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from umd_eqx.errors import BadInput
from umd_eqx.masking import View
from umd_eqx.models.autoencoder import AbstractModel, Part
from umd_eqx.paths import NETWORK_STEPS
from umd_eqx.types import NO_CLASS, Image, Label, NetworkTime, Prediction, Representation, Scalar


class AbstractGuidance(AbstractModel):
    """A wrapper that changes the predictions of `model`; in all else it is that model."""

    model: eqx.AbstractVar[AbstractModel]

    @property
    def image_shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model's."""
        return self.model.image_shape

    @property
    def num_classes(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model's."""
        return self.model.num_classes

    @property
    def patch(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model's."""
        return self.model.patch

    @property
    def num_patches(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model's."""
        return self.model.num_patches

    @abc.abstractmethod
    def __call__(
        self,
        x: Image,
        t: NetworkTime,
        y: Label = NO_CLASS,
        view: View | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Prediction:
        """The guided prediction of the clean image and the noise."""

    def represent(self, x: Image, t: NetworkTime, y: Label = NO_CLASS) -> Representation:
        """The model's: guidance is for predictions."""
        return self.model.represent(x, t, y)


class ClassifierFree(AbstractGuidance):
    """uncond + cfg_scale (cond - uncond), of the clean image and of the noise (Ho and Salimans 2022, eq. 6, in the
    reference's notation: 1 is no guidance, 0 is no label).

    Both passes are one batch. Raises `BadInput` naming `--cfg-scale` for a model without labels.
    """

    model: AbstractModel
    cfg_scale: Scalar

    def __init__(self, model: AbstractModel, cfg_scale: float | Scalar):
        self.model, self.cfg_scale = model, _scale(cfg_scale)
        if model.num_classes is None:
            raise BadInput("--cfg-scale", "the network knows no labels to be guided by", "Fine-tune it, or use 1")

    def __call__(
        self,
        x: Image,
        t: NetworkTime,
        y: Label = NO_CLASS,
        view: View | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Prediction:
        """The guided prediction. For `NO_CLASS` it is the plain one."""
        labels = jnp.stack([jnp.asarray(y), jnp.full_like(y, NO_CLASS)])
        both = jax.vmap(lambda label: self.model(x, t, label, view, key=key))(labels)
        return self._guided(both)

    def together(self, parts: Sequence[Part]) -> list[Prediction]:
        """All parts in one pass of the model, each with twice as many images in a row."""
        pairs = [(part, eqx.tree_at(lambda p: p.y, part, jnp.full_like(part.y, NO_CLASS))) for part in parts]
        doubled = [jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *pair) for pair in pairs]
        predictions = jax.tree.map(lambda leaf: jnp.stack(jnp.split(leaf, 2, axis=1)), self.model.together(doubled))
        return [self._guided(both) for both in predictions]

    def _guided(self, both: Prediction) -> Prediction:
        # Along the first axis: with the label, without.
        cond, uncond = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
        return _extrapolate(uncond, cond, self.cfg_scale)


class Autoguidance(AbstractGuidance):
    """weak + scale (model - weak): away from a weaker version of the network (Karras et al. 2024, "Guiding a diffusion
    model with a bad version of itself").

    `weak` was trained less, or is smaller, or knows no labels. Raises `BadInput` naming `--weak` where its images have
    another shape, or its labels another meaning.
    """

    model: AbstractModel
    weak: AbstractModel
    scale: Scalar

    def __init__(self, model: AbstractModel, weak: AbstractModel, scale: float | Scalar):
        self.model, self.weak, self.scale = model, weak, _scale(scale)
        way_out = "Take a checkpoint of the same data"
        if weak.image_shape != model.image_shape:
            problem = f"its images are {weak.image_shape} and not {model.image_shape}"
            raise BadInput("--weak", problem, way_out)
        if weak.num_classes not in (None, model.num_classes):
            raise BadInput("--weak", f"it knows {weak.num_classes} classes and not {model.num_classes}", way_out)

    def __call__(
        self,
        x: Image,
        t: NetworkTime,
        y: Label = NO_CLASS,
        view: View | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Prediction:
        """The guided prediction. Raises `ValueError` for a view where the weak network has other patches."""
        if view is not None and (self.weak.patch, self.weak.num_patches) != (self.patch, self.num_patches):
            raise ValueError(f"a view of patches of {self.patch}, for a weak network with patches of {self.weak.patch}")
        weak, strong = (model(x, t, y, view, key=key) for model in (self.weak, self.model))
        return _extrapolate(weak, strong, self.scale)


class Interval(AbstractGuidance):
    """`guided` at path times in [low, high], and the plain `model` elsewhere (Kynkaanniemi et al. 2024, "Applying
    guidance in a limited interval", who give the interval as noise levels).

    Where t is not batched, as in a sampler of fixed steps that is vmapped over images, only one of the two is computed.
    Raises `BadInput` naming `--cfg-interval` unless 0 <= low < high <= 1.
    """

    guided: AbstractModel
    model: AbstractModel
    low: float
    high: float

    def __init__(self, guided: AbstractModel, model: AbstractModel, low: float, high: float):
        self.guided, self.model, self.low, self.high = guided, model, low, high
        if not 0.0 <= low < high <= 1.0:
            problem = f"{low:g} .. {high:g} is no piece of [0, 1]"
            raise BadInput("--cfg-interval", problem, "Give two times of the path, 0 <= low < high <= 1")

    def __call__(
        self,
        x: Image,
        t: NetworkTime,
        y: Label = NO_CLASS,
        view: View | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Prediction:
        """The prediction of the one in force."""
        # Times 1000 and not t / 1000: this is how a smooth path makes t, so that the ends are met exactly.
        inside = (t >= NETWORK_STEPS * self.low) & (t <= NETWORK_STEPS * self.high)
        branches = [lambda x, m=model: m(x, t, y, view, key=key) for model in (self.guided, self.model)]
        return jax.lax.cond(inside, *branches, x)


def guide(model: AbstractModel, cfg_scale: float) -> AbstractModel:
    """The model under classifier-free guidance; at 1 the model itself, which costs half as much.

    Raises `BadInput` naming `--cfg-scale` for a model without labels at any other scale.
    """
    return model if cfg_scale == 1.0 else ClassifierFree(model, cfg_scale)


def _scale(value: float | Scalar) -> Scalar:
    # An array, so that another scale is no other program.
    return jnp.asarray(1.0 * value)


def _extrapolate(start: Prediction, end: Prediction, scale: Scalar) -> Prediction:
    return jax.tree.map(lambda a, b: a + scale.astype(a.dtype) * (b - a), start, end)
