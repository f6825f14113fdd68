"""The transformer block, plain or modulated, and what it may do otherwise than the published one."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.models.attention import Attention
from umd_eqx.models.layers import LayerNorm, Mlp, SwiGLU
from umd_eqx.models.packed import Packed


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a block may do otherwise than the published one."""

    rotary: bool = False
    """Rotate queries and keys by the row and column of their patch (RoPE), beside the learned positions."""
    qk_norm: bool = False
    """Normalise queries and keys in each head (RMSNorm)."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The MLP: 4 times wider with GELU, as published, or SwiGLU with as many parameters."""


class Modulation(eqx.Module):
    """What a block is told by AdaLN: shift, scale and gate of attention and of the MLP, for each token."""

    shift_attention: Float[Array, "rows length d"]
    scale_attention: Float[Array, "rows length d"]
    gate_attention: Float[Array, "rows length d"]
    shift_mlp: Float[Array, "rows length d"]
    scale_mlp: Float[Array, "rows length d"]
    gate_mlp: Float[Array, "rows length d"]


class Block(eqx.Module):
    """A pre-norm transformer block, plain or modulated (Peebles and Xie 2022, DiT)."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: Mlp | SwiGLU

    @classmethod
    def init(cls, width: int, heads: int, config: BlockConfig, *, key: PRNGKeyArray) -> "Block":
        """A fresh block."""
        attention_key, mlp_key = jax.random.split(key)
        attention = Attention.init(width, heads, qk_norm=config.qk_norm, rotary=config.rotary, key=attention_key)
        mlp = (SwiGLU if config.mlp == "swiglu" else Mlp).init(width, key=mlp_key)
        return cls(LayerNorm.init(width), attention, LayerNorm.init(width), mlp)

    def __call__(
        self, packed: Packed, modulation: Modulation | None = None, prefix: Float[Array, "rows images d"] | None = None
    ) -> Packed:
        """The tokens after attention and MLP; `prefix` is one more token of each image that is attended to."""
        x, m = packed.tokens, modulation
        if m is None:
            prefix = None if prefix is None else self.norm1(prefix)
            x = x + self.attention(packed.with_tokens(self.norm1(x)), prefix)
            return packed.with_tokens(x + self.mlp(self.norm2(x)))
        attended = self.norm1(x) * (1.0 + m.scale_attention) + m.shift_attention
        x = x + m.gate_attention * self.attention(packed.with_tokens(attended), prefix)
        mapped = self.norm2(x) * (1.0 + m.scale_mlp) + m.shift_mlp
        return packed.with_tokens(x + m.gate_mlp * self.mlp(mapped))
