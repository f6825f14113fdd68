"""The interface of a network, as used by objectives, samplers and evaluators."""

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
    """Images of a batch that share one number of visible patches: `count` of them in each row of the batch.

    `cond` and `views` hold the conditioning and the view of each image, batched over both leading axes as by
    `jax.vmap`. `views` is None if every patch is visible.
    """

    x: Float[Array, "rows count h w c"]
    cond: AbstractCond
    views: View | None


class AbstractModel(eqx.Module):
    """Base class for networks that predict noise, clean images or velocities, one image at a time: use `jax.vmap`.

    - `image_shape`: (rows, columns, channels) of an image.
    - `num_classes`: None if the network is unconditional and ignores labels. Otherwise a label is a class, 0 ..
        num_classes - 1, or `NO_CLASS`. `num_classes` itself, the reference's number for `NO_CLASS`, is accepted as
        such; any other number gives a prediction of NaN.
    - `prediction`: the prediction type.
    """

    image_shape: eqx.AbstractVar[tuple[int, int, int]]
    num_classes: eqx.AbstractVar[int | None]
    prediction: eqx.AbstractVar[PredictionType]

    def cond(self, y: Label = NO_CLASS) -> AbstractCond:
        """Returns the conditioning for a clean image of class `y`; `cond.at(t)` is that for a noised image.

        By default this is time 0 and the label. Networks with other conditioning override it.
        """
        return Cond(jnp.zeros((), jnp.float32), label_array(y))

    @abc.abstractmethod
    def __call__(
        self, x: Image, cond: AbstractCond, view: View | None = None, *, key: PRNGKeyArray | None = None
    ) -> AbstractPrediction:
        """Returns the prediction for the noised image `x`. Without a view, every patch is visible."""

    def forward_groups(self, groups: Sequence[Group]) -> list[Any]:
        """Returns the predictions for groups of images with different views, each with its group's two leading axes.

        By default the groups are processed one after the other. Networks that can process them together override this;
        the values are the same.
        """
        return [over_rows(self)(group.x, group.cond, group.views) for group in groups]


class AbstractPatchModel(AbstractModel):
    """Base class for networks on image patches, some of which may be hidden, that also provide a representation.

    `patch` is the side of a patch in pixels and `num_patches` the number of patches in an image, the length of a mask.
    """

    patch: eqx.AbstractVar[int]
    num_patches: eqx.AbstractVar[int]

    @property
    def accepts_patch_times(self) -> bool:
        """Whether `cond.t` may hold a time for each patch, in raster order. False unless overridden."""
        return False

    @abc.abstractmethod
    def represent(self, x: Image, cond: AbstractCond) -> Representation:
        """Returns the encoder's representation of the whole image."""


class AbstractLayeredModel(AbstractPatchModel):
    """Base class for networks on image patches that are made of layers, each of which represents the image.

    Layers are numbered from 1, in the order from the input to the output.
    """

    @property
    @abc.abstractmethod
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, in order."""

    @property
    @abc.abstractmethod
    def represented_layer(self) -> int:
        """The number of the layer whose representation `represent` returns."""

    @abc.abstractmethod
    def represent_layers(self, x: Image, cond: AbstractCond) -> tuple[Representation, ...]:
        """Returns the representation of the whole image after each layer, in one pass; widths may differ."""


def num_patches_of(model: AbstractModel) -> int:
    """Returns the number of patches in a mask for `model`; 1 for a network without patches."""
    return model.num_patches if isinstance(model, AbstractPatchModel) else 1


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Vectorises a function of one image over both leading axes of a batch: its rows, and the images of each row."""
    return jax.vmap(jax.vmap(function))


def label_array(y: Label) -> Array:
    """Converts a label to an array, which can be batched."""
    return jnp.asarray(y, jnp.int32) if isinstance(y, int) else y


def num_parameters(model: eqx.Module) -> int:
    """Returns the number of trainable parameters."""
    arrays = [leaf for leaf in jax.tree.leaves(model) if hasattr(leaf, "dtype")]
    return sum(leaf.size for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.floating))
