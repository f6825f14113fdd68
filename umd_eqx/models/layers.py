"""The parts of a transformer block, written for groups of images (most often one group of one image).

Parameters are float32; a layer computes in the dtype of what it is given, so that the precision is chosen once, where
tokens begin.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.types import Group, Groups

LAYER_NORM_EPS = 1e-6

Initializer = jax.nn.initializers.Initializer
zeros = jax.nn.initializers.zeros
xavier_uniform = jax.nn.initializers.xavier_uniform()
lecun_normal = jax.nn.initializers.lecun_normal()
tiny_normal = jax.nn.initializers.normal(1e-6)


class Linear(eqx.Module):
    """y = x W + b over the last axis; the kernel is (inputs, outputs) as in Flax."""

    kernel: Float[Array, "inputs outputs"]
    bias: Float[Array, "outputs"]

    @classmethod
    def init(
        cls,
        inputs: int,
        outputs: int,
        *,
        key: PRNGKeyArray,
        kernel_init: Initializer = lecun_normal,
        bias_init: Initializer = zeros,
    ) -> "Linear":
        """A fresh layer."""
        kernel_key, bias_key = jax.random.split(key)
        kernel = kernel_init(kernel_key, (inputs, outputs), jnp.float32)
        return cls(kernel, bias_init(bias_key, (outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        """Applies the layer to each row, in the dtype of `x`."""
        return x @ self.kernel.astype(x.dtype) + self.bias.astype(x.dtype)


class LayerNorm(eqx.Module):
    """Layer normalisation with scale and bias, eps 1e-6; statistics in float32."""

    scale: Float[Array, "d"]
    bias: Float[Array, "d"]

    @classmethod
    def init(cls, width: int) -> "LayerNorm":
        """Scale 1, bias 0."""
        return cls(jnp.ones(width, jnp.float32), jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Normalises each row."""
        normal = jax.nn.standardize(x.astype(jnp.float32), epsilon=LAYER_NORM_EPS)
        return (normal * self.scale + self.bias).astype(x.dtype)


class Attention(eqx.Module):
    """Multi-head self-attention with biases everywhere, queries, keys and values from one product."""

    qkv: Linear
    out: Linear
    heads: int = eqx.field(static=True)

    @classmethod
    def init(cls, width: int, heads: int, *, key: PRNGKeyArray) -> "Attention":
        """Fresh attention; `heads` divides `width`."""
        qkv_key, out_key = jax.random.split(key)
        qkv = Linear.init(width, 3 * width, key=qkv_key, kernel_init=_three_xavier_uniform)
        return cls(qkv, Linear.init(width, width, key=out_key, kernel_init=xavier_uniform), heads)

    def __call__(self, groups: Groups) -> Groups:
        """Every token attends to every token of its own image."""
        return rowwise(self.out, tuple(self._mix(qkv) for qkv in rowwise(self.qkv, groups)))

    def _mix(self, qkv: Float[Array, "rows count n three_d"]) -> Group:
        rows, count, n, three_d = qkv.shape
        heads = qkv.reshape(rows * count, n, 3, self.heads, three_d // (3 * self.heads))
        mixed = jax.nn.dot_product_attention(heads[:, :, 0], heads[:, :, 1], heads[:, :, 2])
        return mixed.reshape(rows, count, n, three_d // 3)


class Mlp(eqx.Module):
    """Two linear layers, 4 times wider between them, with the tanh GELU."""

    up: Linear
    down: Linear

    @classmethod
    def init(cls, width: int, *, key: PRNGKeyArray) -> "Mlp":
        """A fresh MLP."""
        up_key, down_key = jax.random.split(key)
        return cls(
            Linear.init(width, 4 * width, key=up_key, kernel_init=xavier_uniform, bias_init=tiny_normal),
            Linear.init(4 * width, width, key=down_key, kernel_init=xavier_uniform, bias_init=tiny_normal),
        )

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Applies the two layers to each row."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Block(eqx.Module):
    """The parts of a pre-norm transformer block. How they are put together is the conditioning's business."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: Mlp

    @classmethod
    def init(cls, width: int, heads: int, *, key: PRNGKeyArray) -> "Block":
        """A fresh block."""
        attention_key, mlp_key = jax.random.split(key)
        attention = Attention.init(width, heads, key=attention_key)
        return cls(LayerNorm.init(width), attention, LayerNorm.init(width), Mlp.init(width, key=mlp_key))


def rowwise(layer: Callable[[Array], Array], groups: Groups) -> Groups:
    """Applies a layer to the tokens of all groups at once, as one tall matrix.

    So a pass over images with different views reads each weight once, and its gradient is written once. Groups are
    joined within each row of the batch, not end to end: a batch that is sharded over its rows stays where it is. The
    matrix is flat because XLA's CPU back end is slow at the gradient of a product that contracts over two axes.
    """
    rows = groups[0].shape[0]
    flat = [group.reshape(rows, -1, group.shape[-1]) for group in groups]
    joined = flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)  # rows, tokens of a row, d
    done = layer(joined.reshape(-1, joined.shape[-1])).reshape(*joined.shape[:2], -1)
    ends = list(itertools.accumulate(part.shape[1] for part in flat))
    parts = [done] if len(flat) == 1 else jnp.split(done, ends[:-1], axis=1)
    return tuple(part.reshape(*group.shape[:-1], -1) for part, group in zip(parts, groups, strict=True))


def sinusoid(t: Float[Array, ""], width: int) -> Float[Array, "width"]:
    """The embedding of the network's time t in [0, 1000]: [sin(t f), cos(t f)], f_i = 10000^(-i / (width/2 - 1)).

    As the reference does (its half - 1 is not the Transformer's half). Always float32: t f up to 1000 has no room in
    bfloat16.
    """
    half = width // 2
    angles = t.astype(jnp.float32) * jnp.exp(-jnp.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


def _three_xavier_uniform(
    key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
) -> Array:
    # Each of the three kernels by its own fan, as if they were apart: one wide kernel would start smaller.
    width = shape[0]
    kernels = [xavier_uniform(k, (width, width), dtype) for k in jax.random.split(key, 3)]
    return jnp.concatenate(kernels, axis=1)
