"""Tokens of images with different views as one array: the images of each row of a batch, packed end to end.

A layer that treats each token alone sees one matrix, so that a pass over clean and noised images reads each weight once
and writes its gradient once. Only attention needs to know where an image ends.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Segment(NamedTuple):
    """A run of a row: `images` images with `tokens` tokens each."""

    images: int
    tokens: int

    @property
    def length(self) -> int:
        """The tokens of the run."""
        return self.images * self.tokens


Segments = tuple[Segment, ...]


class Packed(eqx.Module):
    """Packed tokens: in each row the images of the first segment, then those of the next.

    Row i of every array of a batch lies on the same device. `positions` are the row and column of each token's patch,
    counted from 1; a token without a place, such as a class token, is at (0, 0), which a rotation leaves as it is.
    """

    tokens: Float[Array, "rows length d"]
    positions: Float[Array, "rows length 2"]
    segments: Segments = eqx.field(static=True)

    def with_tokens(self, tokens: Float[Array, "rows length new_d"]) -> "Packed":
        """The same places with other tokens."""
        return Packed(tokens, self.positions, self.segments)


class Embedded(eqx.Module):
    """The embedded condition c: an entry for each image or, with `per_token`, for each token of the packed sequence."""

    c: Float[Array, "rows entries d"]
    per_token: bool = eqx.field(static=True, default=False)

    def map(self, function: Callable[[Array], Array]) -> "Embedded":
        """A function of each entry."""
        return Embedded(function(self.c), self.per_token)


def pack(groups: Sequence[Float[Array, "rows _ _ d"]]) -> Float[Array, "rows length d"]:
    """Images in groups (rows, images, tokens, d), each with its own number of tokens, as one sequence a row."""
    flat = [group.reshape(group.shape[0], -1, group.shape[-1]) for group in groups]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)


def unpack(packed: Float[Array, "rows length *d"], segments: Segments) -> list[Array]:
    """The inverse of `pack`: for each segment an array (rows, images, tokens, *d)."""
    ends = list(itertools.accumulate(segment.length for segment in segments))
    parts = [packed] if len(segments) == 1 else jnp.split(packed, ends[:-1], axis=1)
    pairs = zip(parts, segments, strict=True)
    return [part.reshape(part.shape[0], *segment, *part.shape[2:]) for part, segment in pairs]


def conditioned(
    function: Callable[..., Array], segments: Segments, tokens: Sequence[Array], entries: Sequence[Embedded]
) -> Float[Array, "rows length d"]:
    """`function(*tokens, *entries)` of packed tokens and the entries of their images, or of their own.

    An entry of an image is broadcast over its tokens inside of `function`: copied for each token, it would be an array
    as large as the tokens.

    **Arguments:**

    - `function`: of arrays that broadcast, element by element.
    - `tokens`: one or more arrays (rows, length, d) of these segments.
    - `entries`: for each image of the segments or, all of them, for each token.
    """
    if all(entry.per_token for entry in entries):
        return function(*tokens, *(entry.c for entry in entries))
    single = tuple(Segment(segment.images, 1) for segment in segments)
    columns = [*(unpack(x, segments) for x in tokens), *(unpack(entry.c, single) for entry in entries)]
    return pack([function(*each) for each in zip(*columns, strict=True)])
