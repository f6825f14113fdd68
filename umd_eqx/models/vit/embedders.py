"""Embedders of the conditioning: time, time interval and label."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.types import NO_CLASS, AbstractCond, Cond, IntervalCond, Label, Vector
from umd_eqx.models.base import label_array
from umd_eqx.models.vit.layers import Linear, sinusoid


class Trunk(eqx.Module):
    """An MLP on an embedding: two linear layers with a SiLU and twice the width in between."""

    up: Linear
    down: Linear

    @classmethod
    def init(cls, width: int, *, key: PRNGKeyArray) -> "Trunk":
        """Returns a freshly initialised trunk."""
        up_key, down_key = jax.random.split(key)
        return cls(Linear.init(width, 2 * width, key=up_key), Linear.init(2 * width, width, key=down_key))

    def __call__(self, embedding: Vector) -> Vector:
        """Applies the trunk to one embedding."""
        return self.down(jax.nn.silu(self.up(embedding)))

    @property
    def width(self) -> int:
        """The width of the embedding."""
        return self.down.kernel.shape[1]


class AbstractCondEmbedder(eqx.Module):
    """Base class for the embedders of a network's conditioning."""

    @abc.abstractmethod
    def cond(self, y: Label) -> AbstractCond:
        """Returns the conditioning for a clean image of class `y`."""

    @abc.abstractmethod
    def __call__(self, cond: AbstractCond) -> Vector:
        """Returns the embedded conditioning c of one image or patch, in float32: `cond.t` is a scalar."""


class CondEmbedder(AbstractCondEmbedder):
    """Embeds time and label: c = trunk(sinusoid(t)) + trunk(label table[y]), or the first term alone without a table.

    The table has a row for each class, and row `num_classes` for `NO_CLASS`, as in the reference, where `num_classes`
    is the label for it. For any other label, c is NaN.
    """

    time: Trunk
    label_table: Float[Array, "classes d"] | None
    label: Trunk | None

    @classmethod
    def init(cls, width: int, num_classes: int | None, *, key: PRNGKeyArray) -> "CondEmbedder":
        """Returns freshly initialised embedders, without a label table if `num_classes` is None."""
        time_key, table_key, label_key = jax.random.split(key, 3)
        time = Trunk.init(width, key=time_key)
        if num_classes is None:
            return cls(time, None, None)
        table = jax.random.normal(table_key, (num_classes + 1, width), jnp.float32) / width**0.5
        return cls(time, table, Trunk.init(width, key=label_key))

    def cond(self, y: Label) -> Cond:
        """Returns the conditioning on time 0 and the label."""
        return Cond(jnp.zeros((), jnp.float32), label_array(y))

    def __call__(self, cond: AbstractCond) -> Vector:
        """Returns the sum of both embeddings."""
        c = self.time(sinusoid(cond.t, self.time.width))
        if self.label_table is None or self.label is None:
            return c
        last = self.label_table.shape[0] - 1
        row = jnp.where(cond.y == NO_CLASS, last, cond.y)
        # By default JAX wraps and clips indices, which would map nearly every invalid label to the last row.
        embedding = self.label_table.at[row].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return c + self.label(embedding)


TIME_SCALE = 0.01
"""The factor by which `IntervalCondEmbedder` scales network times: at 1000 the fastest sinusoid reaches 10 rad.

The loss of MeanFlow contains the time derivative of the network. Published embeddings reach 1000 rad, and their
derivative would dominate it (Lu and Song 2024, arXiv 2410.11081, section 4.1).
"""


class IntervalCondEmbedder(AbstractCondEmbedder):
    """Embeds a time interval and a label: c = trunk(sinusoid(t)) + trunk(sinusoid(t - r)) + trunk(label table[y]).

    Times are scaled by `TIME_SCALE`. The pair of t and t - r is the best of those compared for MeanFlow (Geng et al.
    2025, table 1c).
    """

    end: CondEmbedder
    length: Trunk

    @classmethod
    def init(cls, width: int, num_classes: int | None, *, key: PRNGKeyArray) -> "IntervalCondEmbedder":
        """Returns freshly initialised embedders, without a label table if `num_classes` is None."""
        end_key, length_key = jax.random.split(key)
        return cls(CondEmbedder.init(width, num_classes, key=end_key), Trunk.init(width, key=length_key))

    def cond(self, y: Label) -> IntervalCond:
        """Returns the conditioning on an interval of length 0 at time 0 and on the label."""
        zero = jnp.zeros((), jnp.float32)
        return IntervalCond(zero, label_array(y), zero)

    def __call__(self, cond: AbstractCond) -> Vector:
        """Returns the sum of all embeddings. Raises `TypeError` if `cond` is not an `IntervalCond`."""
        if not isinstance(cond, IntervalCond):
            raise TypeError(f"a network of average velocities needs an IntervalCond, not a {type(cond).__name__}")
        length = self.length(sinusoid(TIME_SCALE * (cond.t - cond.r), self.length.width))
        return self.end(cond.at(TIME_SCALE * cond.t)) + length
