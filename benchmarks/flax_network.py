"""The network of `flax_baseline`, in Flax linen.

Shapes: b images of h x w x c; n patches, k of them visible; s tokens; width d. Masks are 1 where a patch is hidden.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

# The names that Flax gives to the layers of a stack: in a Python loop, and under `nn.scan`.
LOOP_NAME, SCAN_NAME = "Encoder1DBlock_", "ScanCheckpointEncoder1DBlock_0"


class Variant(NamedTuple):
    """Size of the network; the hidden width of the MLPs is four times the width."""

    width: int
    encoder_depth: int
    decoder_depth: int
    heads: int


class Mlp(nn.Module):
    """Two dense layers with an activation in between; used in every block and for the time embedding."""

    factor: int
    activation: Callable[[Array], Array]
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., d) -> (..., d)."""
        dense = partial(nn.Dense, kernel_init=self.kernel_init, bias_init=self.bias_init)
        hidden = self.activation(dense(self.factor * x.shape[-1])(x))
        return dense(x.shape[-1])(hidden)


class Block(nn.Module):
    """A pre-LN transformer layer with conditioning by AdaLN-zero or by an additional token."""

    heads: int
    adaln: bool

    @nn.compact
    def __call__(self, x: Array, cond: Array) -> tuple[Array, None]:
        """(b, s, d), (b, d) -> (b, s, d); the second result is the per-step output of `nn.scan`, here None."""
        norm = partial(nn.LayerNorm, epsilon=1e-6)
        xavier, tiny = nn.initializers.xavier_uniform(), nn.initializers.normal(1e-6)
        attend = nn.MultiHeadDotProductAttention(self.heads, kernel_init=xavier, name="MultiHeadDotProductAttention_0")
        mlp = Mlp(4, nn.gelu, xavier, tiny, name="MlpBlock_0")  # nn.gelu is the tanh approximation
        if not self.adaln:
            # The conditioning is prepended as a token in every layer and dropped after it.
            x = jnp.concatenate([cond[:, None], x], axis=1)  # (b, 1 + s, d)
            x = x + attend(norm()(x))
            x = x + mlp(norm()(x))
            return x[:, 1:], None
        six = nn.Dense(6 * x.shape[-1], kernel_init=nn.initializers.zeros)(cond)[:, None]  # (b, 1, 6 d)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(six, 6, axis=-1)
        x = x + gate_a * attend(norm()(x) * (1 + scale_a) + shift_a)
        x = x + gate_m * mlp(norm()(x) * (1 + scale_m) + shift_m)
        return x, None


class Stack(nn.Module):
    """`depth` layers followed by a LayerNorm."""

    depth: int
    heads: int
    adaln: bool
    scan: bool
    remat: bool

    @nn.compact
    def __call__(self, x: Array, cond: Array) -> Array:
        """(b, s, d), (b, d) -> (b, s, d)."""
        # XLA cannot undo rematerialisation inside a loop, so the barriers of prevent_cse would only cost time.
        layer: Any = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        if self.scan:
            one = {"in_axes": nn.broadcast, "length": self.depth}  # every layer receives the same conditioning
            layers: Any = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, **one)
            x, _ = layers(self.heads, self.adaln, name=SCAN_NAME)(x, cond)
        else:
            for i in range(self.depth):
                x, _ = layer(self.heads, self.adaln, name=f"{LOOP_NAME}{i}")(x, cond)
        return nn.LayerNorm(epsilon=1e-6, name="encoder_norm")(x)


class AutoEncoder(nn.Module):
    """The network that all systems share, without class labels."""

    variant: Variant
    patch: int
    adaln: bool
    scan: bool = True
    remat: bool = True

    @nn.compact
    def __call__(self, image: Array, t: Array, u: Array, mask_ratio: float) -> tuple[Array, Array, Array]:
        """Returns (b, h, w, 2 c) predictions of [x0, eps], (b, d) representations and (b, h, w, 1) masks.

        Takes (b, h, w, c) images, (b,) network times (0 = clean) and (b, n) uniform numbers that determine the masks
        (unused at ratio 0).
        """
        p, d = self.patch, self.variant.width
        b, h, w, c = image.shape
        n, grid = (h // p) * (w // p), (h // p, w // p)
        stack = partial(Stack, heads=self.variant.heads, adaln=self.adaln, scan=self.scan, remat=self.remat)
        position = nn.initializers.normal(stddev=1 / math.sqrt(n))
        cls = self.param("cls", nn.initializers.zeros, (1, 4, d))
        hidden = self.param("image_mask_embedding", nn.initializers.normal(stddev=0.02), (1, 1, d))

        cond = Mlp(2, nn.silu, name="time_trunk")(sinusoid(t, d))  # (b, d)
        cond = nn.silu(cond) if self.adaln else cond
        x = nn.Conv(d, (p, p), strides=(p, p), padding="VALID", name="embedding")(image).reshape(b, n, d)
        x = x + self.param("pos_embedding", position, (1, n, d))

        mask, restore = jnp.zeros((b, n)), None  # ratio 0: all patches in image order
        if mask_ratio > 0:
            shuffle = jnp.argsort(u, axis=1)  # (b, n)
            restore = jnp.argsort(shuffle, axis=1)
            visible = int(n * (1 - mask_ratio))
            x = jnp.take_along_axis(x, shuffle[:, :visible, None], axis=1)  # (b, k, d), in shuffled order
            mask = (restore >= visible).astype(jnp.float32)

        # Class tokens have no position embedding. Their mean is the representation; it replaces them in the decoder.
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 4, d)), x], axis=1)
        x = stack(self.variant.encoder_depth, name="Encoder")(x, cond)
        representation, x = x[:, :4].mean(axis=1), x[:, 4:]

        if restore is not None:
            x = jnp.concatenate([x, jnp.broadcast_to(hidden, (b, n - x.shape[1], d))], axis=1)
            x = jnp.take_along_axis(x, restore[..., None], axis=1)  # (b, n, d), in image order
        x = x + self.param("dec_pos_embedding", position, (1, n, d))
        x = jnp.concatenate([representation[:, None], x], axis=1)
        x = stack(self.variant.decoder_depth, name="Decoder")(x, cond)[:, 1:]

        if self.adaln:
            modulation = nn.Dense(2 * d, kernel_init=nn.initializers.zeros, name="final_modulation")(cond)[:, None]
            shift, scale = jnp.split(modulation, 2, axis=-1)
            x = x * (1 + scale) + shift
        small = nn.initializers.normal(0.02)
        head = nn.ConvTranspose(2 * c, (p, p), (p, p), "VALID", kernel_init=small, name="final_conv")
        pixels = jnp.repeat(jnp.repeat(mask.reshape(b, *grid, 1), p, axis=1), p, axis=2)
        return head(x.reshape(b, *grid, d)), representation, pixels


def sinusoid(t: Array, width: int) -> Array:
    """Returns the sinusoidal embedding of integer steps, sines first: (b,) -> (b, width)."""
    half = width // 2
    frequency = jnp.exp(-math.log(10000) * jnp.arange(half) / (half - 1))
    angle = t.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
