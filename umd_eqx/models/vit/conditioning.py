"""How the condition c (time and label) reaches a transformer block: three ways, a module each."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from umd_eqx.core.types import Vector
from umd_eqx.models.vit.blocks import Block, Modulation
from umd_eqx.models.vit.layers import Linear, xavier_uniform, zeros
from umd_eqx.models.vit.packed import Embedded, Packed


class AbstractConditioning(eqx.Module):
    """What a stack of blocks does with c.

    `layers` holds what differs from block to block, with a leading axis of the depth (None if nothing does); the stack
    scans over it. `prepare` runs once for the stack, `apply` once for each block.
    """

    layers: eqx.AbstractVar[PyTree]

    @abc.abstractmethod
    def prepare(self, c: Embedded) -> Embedded:
        """What is made of c once, for all blocks."""

    @abc.abstractmethod
    def apply(self, block: Block, layer: PyTree, prepared: Embedded, packed: Packed) -> Packed:
        """One block on all tokens, given its slice of `layers` and what was prepared."""


class AdaLNZero(AbstractConditioning):
    """Each block computes its own shift, scale and gate from c by a linear layer that starts at zero (DiT).

    A third of the parameters of the published B/4. At the start every block is the identity.
    """

    layers: Linear

    @classmethod
    def init(cls, condition: int, width: int, depth: int, *, key: PRNGKeyArray) -> "AdaLNZero":
        """For `depth` blocks of `width` and a c of `condition` numbers."""
        keys = jax.random.split(key, depth)
        return cls(eqx.filter_vmap(lambda k: Linear.init(condition, 6 * width, key=k, kernel_init=zeros))(keys))

    def prepare(self, c: Embedded) -> Embedded:
        """SiLU(c)."""
        return c.map(jax.nn.silu)

    def apply(self, block: Block, layer: Linear, prepared: Embedded, packed: Packed) -> Packed:
        """The block, modulated by its own linear layer."""
        return block(packed, _modulation(prepared.map(layer)))


class SharedAdaLN(AbstractConditioning):
    """One zero-initialised linear layer for all blocks, plus a small table for each (PixArt-alpha, AdaLN-single)."""

    shared: Linear
    layers: Float[Array, "depth six_widths"]

    @classmethod
    def init(cls, condition: int, width: int, depth: int, *, key: PRNGKeyArray) -> "SharedAdaLN":
        """For `depth` blocks of `width` and a c of `condition` numbers."""
        shared = Linear.init(condition, 6 * width, key=key, kernel_init=zeros)
        return cls(shared=shared, layers=jnp.zeros((depth, 6 * width), jnp.float32))

    def prepare(self, c: Embedded) -> Embedded:
        """The shared layer of SiLU(c)."""
        return c.map(jax.nn.silu).map(self.shared)

    def apply(self, block: Block, layer: Vector, prepared: Embedded, packed: Packed) -> Packed:
        """The block, modulated by the shared modulation plus its own row of the table."""
        own = prepared.map(lambda rows: rows + layer.astype(rows.dtype))
        return block(packed, _modulation(own))


class Token(AbstractConditioning):
    """c is one more token, put in anew before every block and dropped after it (the MAE rows of the paper).

    Where the stack is not as wide as c, a linear layer brings c to its width once.
    """

    project: Linear | None = None
    layers: None = None

    @classmethod
    def init(cls, condition: int, width: int, *, key: PRNGKeyArray) -> "Token":
        """For blocks of `width` and a c of `condition` numbers."""
        if condition == width:
            return cls()
        return cls(project=Linear.init(condition, width, key=key, kernel_init=xavier_uniform))

    def prepare(self, c: Embedded) -> Embedded:
        """c at the width of the stack. Raises `ValueError` for a condition of each token."""
        if c.per_token:
            raise ValueError("one token cannot tell the time of each patch: use AdaLN")
        return c if self.project is None else c.map(self.project)

    def apply(self, block: Block, layer: None, prepared: Embedded, packed: Packed) -> Packed:
        """The plain pre-norm block, which attends to c as well.

        The reference inserts c into the sequence and drops it after the block: of all that a block makes of it, only
        its key and its value reach another token.
        """
        return block(packed, prefix=prepared.c)


def _modulation(six: Embedded) -> Modulation:
    return Modulation(*(Embedded(part, six.per_token) for part in jnp.split(six.c, 6, axis=-1)))
