"""Packed tokens: the tokens of images with different views in one array, concatenated within each row of a batch.

Token-wise layers operate on one matrix, and a pass over clean and noised images therefore reads each weight once and
writes its gradient once. Only attention depends on the boundaries between images.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Segment(NamedTuple):
    """A segment of a row: `images` images with `tokens` tokens each."""

    images: int
    tokens: int

    @property
    def length(self) -> int:
        """The number of tokens in the segment."""
        return self.images * self.tokens


Segments = tuple[Segment, ...]


class Packed(eqx.Module):
    """Packed tokens: each row holds the images of the first segment, then those of the next.

    Row i of every array of a batch lies on the same device. `positions` are the row and column of each token's patch,
    counted from 1. A token without a position, such as a class token, is at (0, 0), for which `rotate` is the identity.
    """

    tokens: Float[Array, "rows length d"]
    positions: Float[Array, "rows length 2"]
    segments: Segments = eqx.field(static=True)

    def with_tokens(self, tokens: Float[Array, "rows length new_d"]) -> "Packed":
        """Returns the same segments and positions with other tokens."""
        return Packed(tokens, self.positions, self.segments)


class Embedded(eqx.Module):
    """The embedded conditioning c: an entry per image or, with `per_token`, per token of the packed sequence."""

    c: Float[Array, "rows entries d"]
    per_token: bool = eqx.field(static=True, default=False)

    def map(self, function: Callable[[Array], Array]) -> "Embedded":
        """Applies a function to each entry."""
        return Embedded(function(self.c), self.per_token)


def pack(groups: Sequence[Float[Array, "rows _ _ d"]]) -> Float[Array, "rows length d"]:
    """Packs groups of images (rows, images, tokens, d), with different numbers of tokens, into one sequence per row."""
    flat = [group.reshape(group.shape[0], -1, group.shape[-1]) for group in groups]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)


def unpack(packed: Float[Array, "rows length *d"], segments: Segments) -> list[Array]:
    """The inverse of `pack`: returns an array (rows, images, tokens, *d) for each segment."""
    ends = list(itertools.accumulate(segment.length for segment in segments))
    parts = [packed] if len(segments) == 1 else jnp.split(packed, ends[:-1], axis=1)
    pairs = zip(parts, segments, strict=True)
    return [part.reshape(part.shape[0], *segment, *part.shape[2:]) for part, segment in pairs]


def conditioned(
    function: Callable[..., Array], segments: Segments, tokens: Sequence[Array], entries: Sequence[Embedded]
) -> Float[Array, "rows length d"]:
    """Computes `function(*tokens, *entries)` on packed tokens and the entries of each image or token.

    The entry of an image is broadcast over its tokens inside `function`. A copy for each token would take as much
    memory as the tokens.

    **Arguments:**

    - `function`: an element-wise function of arrays that broadcast.
    - `tokens`: one or more arrays (rows, length, d) with these segments.
    - `entries`: either all with an entry per image or all with an entry per token.
    """
    if all(entry.per_token for entry in entries):
        return function(*tokens, *(entry.c for entry in entries))
    single = tuple(Segment(segment.images, 1) for segment in segments)
    columns = [*(unpack(x, segments) for x in tokens), *(unpack(entry.c, single) for entry in entries)]
    return pack([function(*each) for each in zip(*columns, strict=True)])
