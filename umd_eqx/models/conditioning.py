"""How the condition c (time and label) reaches a transformer block: three ways, a module each."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from umd_eqx.models.layers import Block, Linear, xavier_uniform, zeros
from umd_eqx.types import Signal, Tokens


class AbstractConditioning(eqx.Module):
    """What a stack of blocks does with c.

    `layers` holds what differs from block to block, with a leading axis of the depth (None if nothing does); the stack
    scans over it. `prepare` runs once for the stack, `apply` once for each block.
    """

    layers: eqx.AbstractVar[PyTree]

    @abc.abstractmethod
    def prepare(self, c: Float[Array, "condition"]) -> Signal:
        """What is made of c once, for all blocks."""

    @abc.abstractmethod
    def apply(self, block: Block, layer: PyTree, signal: Signal, x: Tokens) -> Tokens:
        """One block on the tokens, given its slice of `layers` and the prepared signal."""


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

    def prepare(self, c: Float[Array, "condition"]) -> Signal:
        """SiLU(c)."""
        return jax.nn.silu(c)

    def apply(self, block: Block, layer: Linear, signal: Signal, x: Tokens) -> Tokens:
        """The block, modulated by its own linear layer."""
        return _modulated(block, layer(signal), x)


class SharedAdaLN(AbstractConditioning):
    """One zero-initialised linear layer for all blocks, plus a small table for each (PixArt-alpha, AdaLN-single)."""

    shared: Linear
    layers: Float[Array, "depth six_widths"]

    @classmethod
    def init(cls, condition: int, width: int, depth: int, *, key: PRNGKeyArray) -> "SharedAdaLN":
        """For `depth` blocks of `width` and a c of `condition` numbers."""
        return cls(Linear.init(condition, 6 * width, key=key, kernel_init=zeros), jnp.zeros((depth, 6 * width)))

    def prepare(self, c: Float[Array, "condition"]) -> Signal:
        """The shared layer of SiLU(c)."""
        return self.shared(jax.nn.silu(c))

    def apply(self, block: Block, layer: Signal, signal: Signal, x: Tokens) -> Tokens:
        """The block, modulated by the shared signal plus its own row of the table."""
        return _modulated(block, signal + layer.astype(signal.dtype), x)


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
        return cls(Linear.init(condition, width, key=key, kernel_init=xavier_uniform))

    def prepare(self, c: Float[Array, "condition"]) -> Signal:
        """c at the width of the stack."""
        return c if self.project is None else self.project(c)

    def apply(self, block: Block, layer: None, signal: Signal, x: Tokens) -> Tokens:
        """The plain pre-norm block on c and the tokens."""
        x = jnp.concatenate([signal[None], x])  # 1 + n, d
        x = x + block.attention(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
        return x[1:]  # n, d


def _modulated(block: Block, modulation: Signal, x: Tokens) -> Tokens:
    # x + gate * f(LN(x) * (1 + scale) + shift), for attention and then for the MLP (Peebles and Xie 2022, DiT).
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6)
    x = x + gate_a * block.attention(block.norm1(x) * (1.0 + scale_a) + shift_a)
    return x + gate_m * block.mlp(block.norm2(x) * (1.0 + scale_m) + shift_m)
