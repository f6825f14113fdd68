"""Three ways to condition transformer blocks on the embedded conditioning c (time and label), one module each."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from umd_eqx.core.types import Vector
from umd_eqx.models.vit.blocks import Block, Modulation
from umd_eqx.models.vit.layers import Linear, xavier_uniform, zeros
from umd_eqx.models.vit.packed import Embedded, Packed

Branches = Float[Array, "2"] | None
"""Factors of a block's residual branches, attention and MLP (stochastic depth). None: 1."""


class AbstractConditioning(eqx.Module):
    """Base class for the conditioning of a stack of blocks on c.

    `layers` holds the parameters of each block, with a leading axis of the depth over which the stack scans, or None if
    there are none. `prepare` runs once per stack, `apply` once per block.
    """

    layers: eqx.AbstractVar[PyTree]

    @property
    def accepts_per_token(self) -> bool:
        """Whether c may be given for each token. True unless overridden."""
        return True

    @abc.abstractmethod
    def prepare(self, c: Embedded) -> Embedded:
        """Returns the part of the computation on c that all blocks share."""

    @abc.abstractmethod
    def apply(
        self, block: Block, layer: PyTree, prepared: Embedded, packed: Packed, branches: Branches = None
    ) -> Packed:
        """Applies one block to all tokens, given its slice of `layers`, the result of `prepare`, and its `branches`."""


class AdaLNZero(AbstractConditioning):
    """AdaLN-zero: each block computes its own shift, scale and gate from c by a zero-initialised linear layer (DiT).

    These layers hold a third of the parameters of the published B/4. At initialisation every block is the identity.
    """

    layers: Linear

    @classmethod
    def init(cls, condition: int, width: int, depth: int, *, key: PRNGKeyArray) -> "AdaLNZero":
        """Returns the conditioning of `depth` blocks of `width` on a c of size `condition`."""
        keys = jax.random.split(key, depth)
        return cls(eqx.filter_vmap(lambda k: Linear.init(condition, 6 * width, key=k, kernel_init=zeros))(keys))

    def prepare(self, c: Embedded) -> Embedded:
        """Returns SiLU(c), the input of every block's linear layer."""
        return c.map(jax.nn.silu)

    def apply(
        self, block: Block, layer: Linear, prepared: Embedded, packed: Packed, branches: Branches = None
    ) -> Packed:
        """Applies the block, modulated by its own linear layer."""
        return block(packed, _modulation(prepared.map(layer)), branches=branches)


class SharedAdaLN(AbstractConditioning):
    """AdaLN-single: one zero-initialised linear layer for all blocks, plus a small table per block (PixArt-alpha)."""

    shared: Linear
    layers: Float[Array, "depth six_widths"]

    @classmethod
    def init(cls, condition: int, width: int, depth: int, *, key: PRNGKeyArray) -> "SharedAdaLN":
        """Returns the conditioning of `depth` blocks of `width` on a c of size `condition`."""
        shared = Linear.init(condition, 6 * width, key=key, kernel_init=zeros)
        return cls(shared=shared, layers=jnp.zeros((depth, 6 * width), jnp.float32))

    def prepare(self, c: Embedded) -> Embedded:
        """Applies the shared layer to SiLU(c)."""
        return c.map(jax.nn.silu).map(self.shared)

    def apply(
        self, block: Block, layer: Vector, prepared: Embedded, packed: Packed, branches: Branches = None
    ) -> Packed:
        """Applies the block, modulated by the shared modulation plus the block's row of the table."""
        own = prepared.map(lambda rows: rows + layer.astype(rows.dtype))
        return block(packed, _modulation(own), branches=branches)


class Token(AbstractConditioning):
    """c as an additional token, inserted before every block and dropped after it, as in the MAE baseline of the paper.

    If the width of the stack differs from the size of c, a linear layer projects c once.
    """

    project: Linear | None = None
    layers: None = None

    @property
    def accepts_per_token(self) -> bool:
        """Always False: there is one token for all others."""
        return False

    @classmethod
    def init(cls, condition: int, width: int, *, key: PRNGKeyArray) -> "Token":
        """Returns the conditioning of blocks of `width` on a c of size `condition`."""
        if condition == width:
            return cls()
        return cls(project=Linear.init(condition, width, key=key, kernel_init=xavier_uniform))

    def prepare(self, c: Embedded) -> Embedded:
        """Returns c at the width of the stack. Raises `ValueError` if c is given per token."""
        if c.per_token:
            raise ValueError("conditioning by a token does not support one time per patch: use AdaLN")
        return c if self.project is None else c.map(self.project)

    def apply(self, block: Block, layer: None, prepared: Embedded, packed: Packed, branches: Branches = None) -> Packed:
        """Applies the plain pre-norm block, which attends to c as well.

        This is equivalent to the reference, which inserts c into the sequence and drops it after the block: other
        tokens depend only on its key and its value.
        """
        return block(packed, prefix=prepared.c, branches=branches)


def _modulation(six: Embedded) -> Modulation:
    return Modulation(*(Embedded(part, six.per_token) for part in jnp.split(six.c, 6, axis=-1)))
