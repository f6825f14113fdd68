"""How the condition c (time and label) reaches a transformer block: three ways, a module each."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from umd_eqx.models.layers import Block, Linear, rowwise, xavier_uniform, zeros
from umd_eqx.types import Group, Groups, Signal


class AbstractConditioning(eqx.Module):
    """What a stack of blocks does with c.

    `layers` holds what differs from block to block, with a leading axis of the depth (None if nothing does); the stack
    scans over it. `prepare` runs once for the stack, `apply` once for each block. Conditions come as groups too, with
    one token (rows, count, 1, condition) for each image.
    """

    layers: eqx.AbstractVar[PyTree]

    @abc.abstractmethod
    def prepare(self, c: Groups) -> Groups:
        """What is made of c once, for all blocks."""

    @abc.abstractmethod
    def apply(self, block: Block, layer: PyTree, signals: Groups, groups: Groups) -> Groups:
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

    def prepare(self, c: Groups) -> Groups:
        """SiLU(c)."""
        return tuple(jax.nn.silu(rows) for rows in c)

    def apply(self, block: Block, layer: Linear, signals: Groups, groups: Groups) -> Groups:
        """The block, modulated by its own linear layer."""
        return _modulated(block, rowwise(layer, signals), groups)


class SharedAdaLN(AbstractConditioning):
    """One zero-initialised linear layer for all blocks, plus a small table for each (PixArt-alpha, AdaLN-single)."""

    shared: Linear
    layers: Float[Array, "depth six_widths"]

    @classmethod
    def init(cls, condition: int, width: int, depth: int, *, key: PRNGKeyArray) -> "SharedAdaLN":
        """For `depth` blocks of `width` and a c of `condition` numbers."""
        shared = Linear.init(condition, 6 * width, key=key, kernel_init=zeros)
        return cls(shared=shared, layers=jnp.zeros((depth, 6 * width), jnp.float32))

    def prepare(self, c: Groups) -> Groups:
        """The shared layer of SiLU(c)."""
        return rowwise(self.shared, tuple(jax.nn.silu(rows) for rows in c))

    def apply(self, block: Block, layer: Signal, signals: Groups, groups: Groups) -> Groups:
        """The block, modulated by the shared signal plus its own row of the table."""
        return _modulated(block, tuple(rows + layer.astype(rows.dtype) for rows in signals), groups)


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

    def prepare(self, c: Groups) -> Groups:
        """c at the width of the stack."""
        return c if self.project is None else rowwise(self.project, c)

    def apply(self, block: Block, layer: None, signals: Groups, groups: Groups) -> Groups:
        """The plain pre-norm block on c and the tokens."""
        groups = tuple(jnp.concatenate(pair, axis=2) for pair in zip(signals, groups, strict=True))  # 1 + n tokens
        groups = _add(groups, block.attention(_each(block.norm1, groups)))
        groups = _add(groups, rowwise(block.mlp, _each(block.norm2, groups)))
        return tuple(group[:, :, 1:] for group in groups)


def _modulated(block: Block, modulations: Groups, groups: Groups) -> Groups:
    # x + gate * f(LN(x) * (1 + scale) + shift), for attention and then for the MLP (Peebles and Xie 2022, DiT).
    parts = [jnp.split(rows, 6, axis=-1) for rows in modulations]  # of each group: six times (rows, count, 1, d)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = zip(*parts, strict=True)
    attended = block.attention(_shifted(_each(block.norm1, groups), scale_a, shift_a))
    groups = _add(groups, _times(gate_a, attended))
    mapped = rowwise(block.mlp, _shifted(_each(block.norm2, groups), scale_m, shift_m))
    return _add(groups, _times(gate_m, mapped))


def _each(layer: Callable[[Group], Group], groups: Groups) -> Groups:
    return tuple(layer(group) for group in groups)


def _add(groups: Groups, others: Groups) -> Groups:
    return tuple(a + b for a, b in zip(groups, others, strict=True))


def _times(gates: Groups, groups: Groups) -> Groups:
    return tuple(a * b for a, b in zip(gates, groups, strict=True))


def _shifted(groups: Groups, scales: Groups, shifts: Groups) -> Groups:
    return tuple(x * (1.0 + scale) + shift for x, scale, shift in zip(groups, scales, shifts, strict=True))
