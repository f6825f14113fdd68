"""What an objective, a sampler or an evaluator may ask of a network."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.masking import View
from umd_eqx.core.predictions import AbstractPrediction, PredictionType
from umd_eqx.core.types import NO_CLASS, AbstractCond, Cond, Image, Label, Representation


class Group(eqx.Module):
    """Images of a batch that are treated alike: `count` in each of its rows, all with one number of visible patches.

    `cond` and `views` hold what is told of each image and its view, as `jax.vmap` returns them: with both leading axes.
    `views` is None where every patch is visible.
    """

    x: Float[Array, "rows count h w c"]
    cond: AbstractCond
    views: View | None


class AbstractModel(eqx.Module):
    """A network that predicts noise, clean images or velocities. One image at a time: use `jax.vmap`.

    - `image_shape`: (rows, columns, channels) of an image.
    - `num_classes`: None where the network knows no labels; it then ignores them. Otherwise a label is a class, 0 ..
        num_classes - 1, or `NO_CLASS`. For any other number the prediction is NaN, but for `num_classes`, which is the
        reference's number for `NO_CLASS`.
    - `prediction`: what it predicts.
    """

    image_shape: eqx.AbstractVar[tuple[int, int, int]]
    num_classes: eqx.AbstractVar[int | None]
    prediction: eqx.AbstractVar[PredictionType]

    def cond(self, y: Label = NO_CLASS) -> AbstractCond:
        """What the network is told of a clean image of class `y`; `cond.at(t)` is for a noised one.

        Time 0 and the label, unless a network is told something else.
        """
        return Cond(jnp.zeros((), jnp.float32), label_array(y))

    @abc.abstractmethod
    def __call__(
        self, x: Image, cond: AbstractCond, view: View | None = None, *, key: PRNGKeyArray | None = None
    ) -> AbstractPrediction:
        """The prediction for the noised image `x`. Without a view, all of it is visible."""

    def forward_groups(self, groups: Sequence[Group]) -> list[Any]:
        """Predictions for images with different views: for each group a prediction with its two leading axes.

        One group after the other, unless a network can share the work. The numbers are the same.
        """
        return [over_rows(self)(group.x, group.cond, group.views) for group in groups]


class AbstractPatchModel(AbstractModel):
    """A network whose images are patches, of which some may be hidden, and which represents an image.

    `patch` is the side of a patch in pixels and `num_patches` how many an image has: what a mask is drawn over.
    """

    patch: eqx.AbstractVar[int]
    num_patches: eqx.AbstractVar[int]

    @abc.abstractmethod
    def represent(self, x: Image, cond: AbstractCond) -> Representation:
        """What the encoder makes of the whole image."""


def num_patches_of(model: AbstractModel) -> int:
    """The patches that a mask is drawn over; 1 for a network without patches."""
    return model.num_patches if isinstance(model, AbstractPatchModel) else 1


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one image, over both leading axes of a batch: its rows, and the images of a row."""
    return jax.vmap(jax.vmap(function))


def label_array(y: Label) -> Array:
    """A label as an array of its own, so that it may be batched."""
    return jnp.asarray(y, jnp.int32) if isinstance(y, int) else y
