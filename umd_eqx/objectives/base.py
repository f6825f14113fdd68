"""What an objective is: a loss of one batch, whose randomness is drawn apart."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from umd_eqx.core.masking import draw_order
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Metrics, Scalar


class Draw(eqx.Module):
    """What denoising one batch may need of randomness, an entry an image. A clean image leaves `t` and `eps` unused.

    Made by `draw_noised`; recorded numbers can stand in for it, so that a test needs no luck.
    """

    t: Float[Array, "b"]
    eps: Float[Array, "b h w c"]
    order: Int[Array, "b n"]
    drop_label: Bool[Array, "b"]


class AbstractObjective(eqx.Module):
    """A loss of a model on a batch, along a path from data to noise.

    What a model is, an objective says for itself: an `AbstractModel`, or the tokenizer in front of one.
    `objective(model, path, batch, key)` is `objective.loss(model, path, batch, objective.draw(key, ...))`. The loss of
    a batch is the mean of the losses of its images, so that it may be computed in parts.
    """

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, model: Any, path: AbstractPath, shape: tuple[int, ...]) -> Any:
        """All randomness of one batch of `shape` (b, h, w, c): a PyTree whose arrays have an entry an image."""

    @abc.abstractmethod
    def loss(self, model: Any, path: AbstractPath, batch: Batch, draw: Any) -> tuple[Scalar, Metrics]:
        """The loss and its parts by name, given what `draw` gives. Images in [-1, 1]."""

    @abc.abstractmethod
    def period(self, batch_size: int) -> int:
        """The smallest number of consecutive images that is treated alike all along a batch of `batch_size`.

        A batch may be cut, over micro-batches or devices, wherever a period ends.
        """

    @abc.abstractmethod
    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` where a mask ratio or a share cannot work for so many patches and images."""

    @property
    def denoises(self) -> bool:
        """Whether images are noised, so that denoising can be measured and images sampled. True unless it says not."""
        return True

    @property
    def hides(self) -> bool:
        """Whether patches are hidden, so that their reconstruction can be measured. True unless it says not."""
        return True

    @property
    def predicts_visible_x0(self) -> bool:
        """Whether the clean image is learned on visible patches of noised images. True unless it says not.

        Where it is learned on hidden patches only, the x0 head's prediction of a visible patch means nothing.
        """
        return True

    def __call__(self, model: Any, path: AbstractPath, batch: Batch, key: PRNGKeyArray) -> tuple[Scalar, Metrics]:
        """The loss and its parts, with fresh randomness."""
        return self.loss(model, path, batch, self.draw(key, model, path, batch.image.shape))


def draw_noised(
    key: PRNGKeyArray,
    path: AbstractPath,
    shape: tuple[int, ...],
    num_patches: int,
    label_dropout: float,
) -> Draw:
    """Fresh randomness for a batch of images of `shape` (b, h, w, c). Label dropout is a probability.

    In float32 also where 64-bit floats are enabled, so that the same key draws the same numbers.
    """
    t_key, eps_key, order_key, drop_key = jax.random.split(key, 4)
    return Draw(
        t=jax.vmap(path.time_from_uniform)(jax.random.uniform(t_key, shape[:1], jnp.float32)),
        eps=jax.random.normal(eps_key, shape, jnp.float32),
        order=jax.vmap(draw_order, in_axes=(0, None))(jax.random.split(order_key, shape[0]), num_patches),
        drop_label=jax.random.bernoulli(drop_key, jnp.asarray(label_dropout, jnp.float32), shape[:1]),
    )


def classes_of(label: Int[Array, "*batch"], num_classes: int | None) -> Int[Array, "*batch"]:
    """Labels of data, those that are not a class replaced by a number for which a network's predictions are NaN.

    So a step with such a label is skipped and counted. It must not pass for `NO_CLASS`, neither by its name nor by its
    row of a table.
    """
    if num_classes is None:
        return label
    return jnp.where((label >= 0) & (label < num_classes), label, num_classes + 1)


def in_rows(tree: PyTree, rows: int) -> PyTree:
    """Each array (b, ...) as (rows, b / rows, ...)."""
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (rows, -1, *leaf.shape[1:])), tree)


def split_by_period(tree: PyTree, first: int, second: int) -> tuple[PyTree, PyTree]:
    """Splits a batch of `first` + `second` images into two kinds by position within a period, not in the middle.

    The batch is g = gcd(first + second, second) rows of one period each; the last second / g images of each row are the
    second kind. Gives both kinds as (g, images of that kind in a row, ...). No image leaves its device where the
    devices divide g.
    """
    rows = math.gcd(first + second, second)
    grid, middle = in_rows(tree, rows), first // rows
    return jax.tree.map(lambda leaf: leaf[:, :middle], grid), jax.tree.map(lambda leaf: leaf[:, middle:], grid)
