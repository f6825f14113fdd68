"""The interface of an objective: the loss of a batch, with its randomness drawn separately."""

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
    """The random numbers for denoising one batch, one entry per image. `t` and `eps` are unused for clean images.

    Created by `draw_noised`. Recorded values may be used instead, which makes a test deterministic.
    """

    t: Float[Array, "b"]
    eps: Float[Array, "b h w c"]
    order: Int[Array, "b n"]
    drop_label: Bool[Array, "b"]


class AbstractObjective(eqx.Module):
    """A loss of a model on a batch, along a path from data to noise.

    Each objective defines the type of its model: an `AbstractModel`, or the tokenizer in front of one.
    `objective(model, path, batch, key)` is `objective.loss(model, path, batch, objective.draw(key, ...))`. The loss of
    a batch is the mean of the losses of its images, which allows it to be computed in parts.
    """

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, model: Any, path: AbstractPath, shape: tuple[int, ...]) -> Any:
        """Draws all randomness of a batch of `shape` (b, h, w, c): a PyTree of arrays with one entry per image."""

    @abc.abstractmethod
    def loss(self, model: Any, path: AbstractPath, batch: Batch, draw: Any) -> tuple[Scalar, Metrics]:
        """Returns the loss and its parts by name, given the result of `draw`. Images are in [-1, 1]."""

    @abc.abstractmethod
    def period(self, batch_size: int) -> int:
        """Returns the number of images after which the treatment of images in a batch of `batch_size` repeats.

        A batch may be split into micro-batches, or over devices, wherever a period ends.
        """

    @abc.abstractmethod
    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` if a mask ratio or a share is invalid for this number of patches and images."""

    def require_suitable(self, model: Any, path: AbstractPath) -> None:
        """Raises `BadInput` if the objective cannot train `model` along `path`. By default it trains any.

        A run asks before it writes anything. `model` may consist of shapes alone.
        """
        del model, path

    @property
    def denoises(self) -> bool:
        """Whether images are noised, which denoising metrics and sampling require. True unless overridden."""
        return True

    @property
    def sees_clean_images(self) -> bool:
        """Whether some images are not noised: fine-tuning then keeps reconstructing some. True unless overridden."""
        return True

    @property
    def needs_labels(self) -> bool:
        """Whether every image needs a label. False unless overridden."""
        return False

    @property
    def hides(self) -> bool:
        """Whether patches are hidden, which reconstruction metrics require. True unless overridden."""
        return True

    @property
    def predicts_visible_x0(self) -> bool:
        """Whether the clean image is learned on visible patches of noised images. True unless overridden.

        If it is learned on hidden patches only, the prediction of the x0 head on a visible patch is meaningless.
        """
        return True

    def __call__(self, model: Any, path: AbstractPath, batch: Batch, key: PRNGKeyArray) -> tuple[Scalar, Metrics]:
        """Returns the loss and its parts by name, with randomness drawn from `key`.

        Raises `BadInput` as `require_suitable` does.
        """
        self.require_suitable(model, path)
        return self.loss(model, path, batch, self.draw(key, model, path, batch.image.shape))


class AbstractCleanObjective(AbstractObjective):
    """Base class for objectives that predict no image from noise or from a part of it, such as classification."""

    @property
    def denoises(self) -> bool:
        """Always False: nothing is denoised."""
        return False

    @property
    def hides(self) -> bool:
        """Always False: no patches are hidden."""
        return False

    @property
    def predicts_visible_x0(self) -> bool:
        """Always False: no image is predicted from a noised one."""
        return False

    def period(self, batch_size: int) -> int:
        """Always 1: all images are treated alike."""
        return 1


def draw_noised(
    key: PRNGKeyArray,
    path: AbstractPath,
    shape: tuple[int, ...],
    num_patches: int,
    label_dropout: float,
) -> Draw:
    """Draws the randomness for a batch of images of `shape` (b, h, w, c). `label_dropout` is a probability.

    The numbers are float32 even if 64-bit floats are enabled, so a key always gives the same numbers.
    """
    t_key, eps_key, order_key, drop_key = jax.random.split(key, 4)
    return Draw(
        t=jax.vmap(path.time_from_uniform)(jax.random.uniform(t_key, shape[:1], jnp.float32)),
        eps=jax.random.normal(eps_key, shape, jnp.float32),
        order=jax.vmap(draw_order, in_axes=(0, None))(jax.random.split(order_key, shape[0]), num_patches),
        drop_label=jax.random.bernoulli(drop_key, jnp.asarray(label_dropout, jnp.float32), shape[:1]),
    )


def mark_invalid_labels(label: Int[Array, "*batch"], num_classes: int | None) -> Int[Array, "*batch"]:
    """Replaces labels that are not a class by a number for which the predictions of a network are NaN.

    A step with such a label is therefore skipped and counted. The label must not be mistaken for `NO_CLASS`, neither by
    its value nor by its row in an embedding table.
    """
    if num_classes is None:
        return label
    return jnp.where((label >= 0) & (label < num_classes), label, num_classes + 1)


def in_rows(tree: PyTree, rows: int) -> PyTree:
    """Reshapes each array from (b, ...) to (rows, b / rows, ...)."""
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (rows, -1, *leaf.shape[1:])), tree)


def split_by_period(tree: PyTree, first: int, second: int) -> tuple[PyTree, PyTree]:
    """Splits a batch of `first` + `second` images into two kinds, by position within each period.

    The batch consists of g = gcd(first + second, second) rows of one period each; the last second / g images of each
    row are the second kind. Returns both kinds as (g, images of that kind in a row, ...). No image moves to another
    device if the number of devices divides g.
    """
    rows = math.gcd(first + second, second)
    grid, middle = in_rows(tree, rows), first // rows
    return jax.tree.map(lambda leaf: leaf[:, :middle], grid), jax.tree.map(lambda leaf: leaf[:, middle:], grid)
