"""Self-attention on packed tokens, within each image, optionally with rotary position embeddings."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.models.vit.layers import Linear, RMSNorm, xavier_uniform
from umd_eqx.models.vit.packed import Packed, Segment, pack, unpack

ROTARY_BASE = 100.0
"""The base of the frequencies in `rotate`. It is small because positions are in the tens, not thousands as in text."""


class Attention(eqx.Module):
    """Multi-head self-attention with biases in all layers; one product computes queries, keys and values.

    `query_norm` and `key_norm` normalise each head before the product (QK-norm: Henry et al. 2020; Dehghani et al.
    2023, section 2). With `rotary`, queries and keys are rotated by their position (`rotate`).
    """

    qkv: Linear
    out: Linear
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    heads: int = eqx.field(static=True)
    rotary: bool = eqx.field(static=True)

    @classmethod
    def init(
        cls, width: int, heads: int, *, qk_norm: bool = False, rotary: bool = False, key: PRNGKeyArray
    ) -> "Attention":
        """Returns a freshly initialised layer.

        `width` must be divisible by `heads` and, if `rotary`, the width of a head by four.
        """
        qkv_key, out_key = jax.random.split(key)
        qkv = Linear.init(width, 3 * width, key=qkv_key, kernel_init=_three_xavier_uniform)
        out = Linear.init(width, width, key=out_key, kernel_init=xavier_uniform)
        query_norm, key_norm = (RMSNorm.init(width // heads) if qk_norm else None for _ in range(2))
        return cls(qkv, out, query_norm, key_norm, heads, rotary)

    def __call__(
        self, packed: Packed, prefix: Float[Array, "rows images d"] | None = None
    ) -> Float[Array, "rows length d"]:
        """Each token attends to all tokens of its own image and, if given, to the `prefix` token of that image."""
        attended = packed if prefix is None else _prefixed(packed, prefix)
        query, key, value = self._heads(self.qkv(attended.tokens))
        if self.rotary:
            query, key = rotate(query, attended.positions), rotate(key, attended.positions)
        queries, keys, values = (unpack(x, attended.segments) for x in (query, key, value))
        if prefix is not None:
            queries = [group[:, :, 1:] for group in queries]
        return self.out(pack([self._attend(*qkv) for qkv in zip(queries, keys, values, strict=True)]))

    def _heads(self, qkv: Float[Array, "rows length three_d"]) -> tuple[Array, Array, Array]:
        # Each has shape (rows, length, heads, head_d).
        split = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1)
        query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return query, key, value

    def _attend(
        self,
        query: Float[Array, "rows images n heads head_d"],
        key: Float[Array, "rows images m heads head_d"],
        value: Float[Array, "rows images m heads head_d"],
    ) -> Float[Array, "rows images n d"]:
        flat = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
        return jax.nn.dot_product_attention(*flat).reshape(*query.shape[:3], -1)


def _prefixed(packed: Packed, prefix: Float[Array, "rows images d"]) -> Packed:
    # Prepends one token without a position to each image.
    segments = tuple(Segment(segment.images, segment.tokens + 1) for segment in packed.segments)
    first = unpack(prefix, tuple(Segment(segment.images, 1) for segment in packed.segments))
    pairs = zip(first, unpack(packed.tokens, packed.segments), strict=True)
    tokens = pack([jnp.concatenate(pair, axis=2) for pair in pairs])
    places = [jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0))) for x in unpack(packed.positions, packed.segments)]
    return Packed(tokens, pack(places), segments)


def rotate(
    heads: Float[Array, "rows length heads head_d"], positions: Float[Array, "rows length 2"]
) -> Float[Array, "rows length heads head_d"]:
    """Applies a two-dimensional rotary embedding: half of each head is rotated by the row, half by the column.

    The i-th pair of components of a half is rotated by position * 100^(-i / pairs), which makes the product of a query
    and a key depend on the difference of their positions (Su et al. 2021; axial form and base of Heo et al. 2024,
    section 3.2). A token at (0, 0) is unchanged. Angles are float32.
    """
    pairs = heads.shape[-1] // 4
    frequencies = ROTARY_BASE ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
    angles = positions.astype(jnp.float32)[..., None] * frequencies  # rows, length, 2, pairs
    angles = angles.reshape(*positions.shape[:2], 1, 2 * pairs)
    cos, sin = jnp.cos(angles).astype(heads.dtype), jnp.sin(angles).astype(heads.dtype)
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _three_xavier_uniform(
    key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
) -> Array:
    # Each of the three kernels is initialised by its own fan-out: as one wide kernel they would start out smaller.
    width = shape[0]
    kernels = [xavier_uniform(k, (width, width), dtype) for k in jax.random.split(key, 3)]
    return jnp.concatenate(kernels, axis=1)
