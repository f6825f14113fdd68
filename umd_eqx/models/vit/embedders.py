"""How a network embeds what it is told: time, an interval of time, label."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.types import NO_CLASS, AbstractCond, Cond, IntervalCond, Label, Vector
from umd_eqx.models.base import label_array
from umd_eqx.models.vit.layers import Linear, sinusoid


class Trunk(eqx.Module):
    """Two linear layers with a SiLU and twice the width between them, on an embedding."""

    up: Linear
    down: Linear

    @classmethod
    def init(cls, width: int, *, key: PRNGKeyArray) -> "Trunk":
        """A fresh trunk."""
        up_key, down_key = jax.random.split(key)
        return cls(Linear.init(width, 2 * width, key=up_key), Linear.init(2 * width, width, key=down_key))

    def __call__(self, embedding: Vector) -> Vector:
        """The output for one embedding."""
        return self.down(jax.nn.silu(self.up(embedding)))

    @property
    def width(self) -> int:
        """The width of the embedding."""
        return self.down.kernel.shape[1]


class AbstractCondition(eqx.Module):
    """The embedders of what a network is told."""

    @abc.abstractmethod
    def cond(self, y: Label) -> AbstractCond:
        """What is told of a clean image of class `y`."""

    @abc.abstractmethod
    def __call__(self, cond: AbstractCond) -> Vector:
        """The embedded condition c, in float32, of one image or patch: `cond.t` is a scalar."""


class Condition(AbstractCondition):
    """c = trunk(sinusoid(t)) + trunk(label table[y]); without a label table, the first term alone.

    The table has a row for each class, and row `num_classes` for `NO_CLASS` (as in the reference, whose number for it
    this is). For a label that is neither, c is NaN.
    """

    time: Trunk
    label_table: Float[Array, "classes d"] | None
    label: Trunk | None

    @classmethod
    def init(cls, width: int, num_classes: int | None, *, key: PRNGKeyArray) -> "Condition":
        """Without a label table where `num_classes` is None."""
        time_key, table_key, label_key = jax.random.split(key, 3)
        time = Trunk.init(width, key=time_key)
        if num_classes is None:
            return cls(time, None, None)
        table = jax.random.normal(table_key, (num_classes + 1, width), jnp.float32) / width**0.5
        return cls(time, table, Trunk.init(width, key=label_key))

    def cond(self, y: Label) -> Cond:
        """Time 0 and the label."""
        return Cond(jnp.zeros((), jnp.float32), label_array(y))

    def __call__(self, cond: AbstractCond) -> Vector:
        """The sum of both embeddings."""
        c = self.time(sinusoid(cond.t, self.time.width))
        if self.label_table is None or self.label is None:
            return c
        last = self.label_table.shape[0] - 1
        row = jnp.where(cond.y == NO_CLASS, last, cond.y)
        # By default an index is wrapped and clipped to the table, and nearly every bad label ends in its last row.
        embedding = self.label_table.at[row].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return c + self.label(embedding)


SLOWER = 0.01
"""By what `IntervalCondition` multiplies network times: at 1000 the fastest sinusoid of an embedding has turned 10 rad.

The loss of MeanFlow has the derivative of the network in time. Published embeddings turn 1000 rad, whose derivative
would drown it (Lu and Song 2024, arXiv 2410.11081, section 4.1).
"""


class IntervalCondition(AbstractCondition):
    """c = trunk(sinusoid(t)) + trunk(sinusoid(t - r)) + trunk(label table[y]), at slow frequencies (`SLOWER`).

    Of t and t - r, because that is the best of the pairs that MeanFlow tried (Geng et al. 2025, table 1c).
    """

    end: Condition
    length: Trunk

    @classmethod
    def init(cls, width: int, num_classes: int | None, *, key: PRNGKeyArray) -> "IntervalCondition":
        """Without a label table where `num_classes` is None."""
        end_key, length_key = jax.random.split(key)
        return cls(Condition.init(width, num_classes, key=end_key), Trunk.init(width, key=length_key))

    def cond(self, y: Label) -> IntervalCond:
        """An interval of length 0 at time 0, and the label."""
        zero = jnp.zeros((), jnp.float32)
        return IntervalCond(zero, label_array(y), zero)

    def __call__(self, cond: AbstractCond) -> Vector:
        """The sum of all embeddings. Raises `TypeError` for anything but an `IntervalCond`."""
        if not isinstance(cond, IntervalCond):
            raise TypeError(f"a network of average velocities is told an IntervalCond and not a {type(cond).__name__}")
        length = self.length(sinusoid(SLOWER * (cond.t - cond.r), self.length.width))
        return self.end(cond.at(SLOWER * cond.t)) + length
