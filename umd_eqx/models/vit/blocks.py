"""The transformer block, plain or modulated, and its options beyond the published one."""

import dataclasses
from typing import Literal, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.models.vit.attention import Attention
from umd_eqx.models.vit.layers import LayerNorm, Mlp, SwiGLU
from umd_eqx.models.vit.packed import Embedded, Packed, conditioned


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Options of a transformer block. The defaults are those of the published block."""

    rotary: bool = False
    """Whether to use rotary embeddings of the patch's row and column (RoPE) besides the learned positions."""
    qk_norm: bool = False
    """Whether to normalise the queries and keys of each head (RMSNorm)."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The MLP: GELU with an expansion factor of 4, as published, or SwiGLU with as many parameters."""


class Modulation(NamedTuple):
    """The AdaLN modulation of a block: shift, scale and gate of attention and MLP, for each image or token."""

    shift_attention: Embedded
    scale_attention: Embedded
    gate_attention: Embedded
    shift_mlp: Embedded
    scale_mlp: Embedded
    gate_mlp: Embedded


class Block(eqx.Module):
    """A pre-norm transformer block, plain or modulated (Peebles and Xie 2022, DiT)."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: Mlp | SwiGLU

    @classmethod
    def init(cls, width: int, heads: int, config: BlockConfig, *, key: PRNGKeyArray) -> "Block":
        """Returns a freshly initialised block."""
        attention_key, mlp_key = jax.random.split(key)
        attention = Attention.init(width, heads, qk_norm=config.qk_norm, rotary=config.rotary, key=attention_key)
        mlp = (SwiGLU if config.mlp == "swiglu" else Mlp).init(width, key=mlp_key)
        return cls(LayerNorm.init(width), attention, LayerNorm.init(width), mlp)

    def __call__(
        self,
        packed: Packed,
        modulation: Modulation | None = None,
        prefix: Float[Array, "rows images d"] | None = None,
        branches: Float[Array, "2"] | None = None,
    ) -> Packed:
        """Applies attention and MLP to all tokens.

        **Arguments:**

        - `modulation`: the AdaLN modulation; None for the plain block.
        - `prefix`: an additional token per image that is attended to but not updated.
        - `branches`: factors of the residual branches of attention and MLP (stochastic depth); None: 1.
        """
        x, m, segments = packed.tokens, modulation, packed.segments
        first, second = (None, None) if branches is None else (branches[0], branches[1])
        if m is None:
            prefix = None if prefix is None else self.norm1(prefix)
            x = x + _scaled(self.attention(packed.with_tokens(self.norm1(x)), prefix), first)
            return packed.with_tokens(x + _scaled(self.mlp(self.norm2(x)), second))
        attended = conditioned(modulate, segments, [self.norm1(x)], [m.shift_attention, m.scale_attention])
        mixed = _scaled(self.attention(packed.with_tokens(attended), prefix), first)
        x = conditioned(_gated, segments, [x, mixed], [m.gate_attention])
        mapped = _scaled(self.mlp(conditioned(modulate, segments, [self.norm2(x)], [m.shift_mlp, m.scale_mlp])), second)
        return packed.with_tokens(conditioned(_gated, segments, [x, mapped], [m.gate_mlp]))


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Returns x (1 + scale) + shift, for arrays that broadcast."""
    return x * (1.0 + scale) + shift


def _scaled(x: Array, factor: Array | None) -> Array:
    return x if factor is None else x * factor.astype(x.dtype)


def _gated(x: Array, change: Array, gate: Array) -> Array:
    return x + gate * change
