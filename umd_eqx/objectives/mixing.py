"""Mixup and CutMix: training on pairs of images and of labels, as pure functions of their draws."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

PAIR = 2
"""Number of neighbouring images in a batch that are mixed with each other."""


class Mixing(NamedTuple):
    """How each image of a batch is mixed with the other image of its pair, one entry per image.

    `own` is the share of its own label; `pixels` the share of its own pixels, by position.
    """

    own: Float[Array, "b"]
    pixels: Float[Array, "b h w"]


def draw_mixing(key: PRNGKeyArray, shape: tuple[int, ...], mixup: float, cutmix: float) -> Mixing:
    """Draws the mixing of a batch of `shape` (b, h, w, c).

    With mixup (Zhang et al. 2018), pixels and labels are mixed with a share from Beta(mixup, mixup). With CutMix (Yun
    et al. 2019), a box is replaced by that of the other image; its area before clipping at the edges is a share from
    Beta(cutmix, cutmix), its centre is uniform, and labels are mixed by the areas. With both, each image is mixed in
    one of the two ways, with equal probability. 0 disables one of them; at least one must be positive.
    """
    count, height, width = shape[:3]
    mix_key, cut_key, row_key, column_key, choice_key = jax.random.split(key, 5)
    blended = jax.random.beta(mix_key, mixup or 1.0, mixup or 1.0, (count,), jnp.float32)
    side = jnp.sqrt(1.0 - jax.random.beta(cut_key, cutmix or 1.0, cutmix or 1.0, (count,), jnp.float32))
    rows = _inside(jax.random.uniform(row_key, (count,)), side, height)
    columns = _inside(jax.random.uniform(column_key, (count,)), side, width)
    kept = 1.0 - (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
    cut = jax.random.bernoulli(choice_key, 0.5 if mixup and cutmix else float(cutmix > 0), (count,))
    pixels = jnp.where(cut[:, None, None], kept, blended[:, None, None])
    return Mixing(jnp.where(cut, jnp.mean(kept, axis=(1, 2)), blended), pixels)


def mix(values: Float[Array, "b *rest"], own: Float[Array, "b *_"]) -> Float[Array, "b *rest"]:
    """Returns own * values + (1 - own) * the values of the other image of each pair, for arrays of equal rank."""
    pairs = values.reshape(-1, PAIR, *values.shape[1:])
    return own * values + (1.0 - own) * pairs[:, ::-1].reshape(values.shape)


def _inside(centre: Float[Array, "b"], side: Float[Array, "b"], length: int) -> Bool[Array, "b length"]:
    """Which pixels of a line lie in a segment, given as shares of its length and rounded to whole pixels."""
    middle = jnp.floor(centre * length)[:, None]
    half = jnp.floor(side * length / 2)[:, None]
    pixels = jnp.arange(length, dtype=jnp.float32)[None]
    return (pixels >= middle - half) & (pixels < middle + half)
