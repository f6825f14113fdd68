"""The project's one vocabulary of shapes and records.

Shapes are per example; a function written for one image is given a batch by `jax.vmap`.

| letter | means |
|---|---|
| `h w c` | rows, columns and channels of an image or latent |
| `n` | patches of an image (in raster order unless a `View` says otherwise) |
| `d` | width of the network |
| `b` | images in a batch |
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

Image = Float[Array, "h w c"]
"""One image, values in [-1, 1] (a latent: whatever its tokenizer says)."""
Latent = Float[Array, "lh lw lc"]
"""What a tokenizer makes of one image; to a network of latents it is an `Image`."""
Images = Float[Array, "b h w c"]
Tokens = Float[Array, "n d"]
Vector = Float[Array, "d"]
Scalar = Float[Array, ""]
Time = Float[Array, ""]
"""Time of a path, in [0, 1]: 0 is clean, 1 is noise."""
NetworkTime = Float[Array, ""]
"""What the network is fed for a time: 0 is clean, 1000 is noise (`AbstractPath.network_time`)."""
Label = Int[Array, ""] | int
"""A class, 0 .. num_classes - 1, or `NO_CLASS`. Traced, or a number of Python."""
NO_CLASS = -1
"""The label of an image whose class a network is not told: classifier-free guidance, clean images, representations.

A network has an embedding of its own for it. It is never a label of data.
"""
Metrics = dict[str, Num[Array, ""]]


class Batch(eqx.Module):
    """Images with their labels. `valid` is False on the rows that only fill up the last batch of an evaluation."""

    image: Float[Array | np.ndarray, "b h w c"]
    label: Int[Array | np.ndarray, "b"]
    valid: Bool[Array | np.ndarray, "b"]


class AbstractCond(eqx.Module):
    """All that a network is told beside the image: one PyTree, which objectives, samplers and guidance pass through.

    `t` is network time (`AbstractPath.network_time`), one for the image or, with a trailing axis, one for each patch.
    `y` is the label. The network owns the embedders of these fields and makes the first value of the type that it
    understands (`AbstractModel.cond`). The fields of a batch have the axes of the batch in front.
    """

    t: eqx.AbstractVar[Float[Array, "..."]]
    y: eqx.AbstractVar[Int[Array, "..."]]

    @abc.abstractmethod
    def at(self, t: Float[Array, "..."]) -> "AbstractCond":
        """The same at another network time."""

    def unlabelled(self) -> "AbstractCond":
        """The same without the label: `y` is `NO_CLASS`."""
        return dataclasses.replace(self, y=jnp.full_like(self.y, NO_CLASS))


class Cond(AbstractCond):
    """Network time and label."""

    t: Float[Array, "..."]
    y: Int[Array, "..."]

    def at(self, t: Float[Array, "..."]) -> "Cond":
        """The same at another network time."""
        return Cond(t, self.y)


class IntervalCond(AbstractCond):
    """Two network times r <= t and a label: what a network of average velocities is told (MeanFlow).

    Where r is t, its prediction is the velocity at t.
    """

    t: Float[Array, "..."]
    y: Int[Array, "..."]
    r: Float[Array, "..."]

    def at(self, t: Float[Array, "..."], r: Float[Array, "..."] | None = None) -> "IntervalCond":
        """The same for the interval from `r` to `t`; without `r`, at the one time `t`."""
        return IntervalCond(t, self.y, t if r is None else r)


class Representation(eqx.Module):
    """What a network knows of one image, after the encoder's last LayerNorm.

    `class_tokens` is the mean of the class tokens (the reference's "pre_logits"), `patches` the mean of the patches.
    """

    class_tokens: Vector
    patches: Vector


class DataSpec(NamedTuple):
    """What the rest of the code needs to know of a data set. Sizes are None where images differ in size."""

    name: str
    num_train: int
    num_test: int
    height: int | None
    width: int | None
    channels: int
    num_classes: int


class LatentSpec(NamedTuple):
    """What the rest of the code needs to know of the latents that images become.

    `factor` pixels of a side become one of the latent, which has `channels`. `digest` is the fingerprint of the
    tokenizer and `stored` that of latents on disk; None where it has not been seen, or where images are encoded on the
    way.
    """

    factor: int
    channels: int
    digest: str | None = None
    stored: str | None = None


def same_tokenizer(digest: object, other: object) -> bool:
    """Whether two fingerprints of tokenizers (`umd_eqx.runs.tokenizers.fingerprint`), or two None, are of the same one.

    A fingerprint of 16 digits, as they were before the settings of a tokenizer were part of them, is taken to be that
    of every tokenizer with the same weights, shift and scale: it says no more.
    """
    if isinstance(digest, str) and isinstance(other, str):
        short, long = sorted((digest, other), key=len)
        return short == long or (len(short) == 16 and len(long) == 32 and long.startswith(short))
    return digest == other


class Report(NamedTuple):
    """What an evaluator returns: numbers by slash-separated name, pictures as uint8 (rows, columns, 3)."""

    scalars: Mapping[str, float]
    images: Mapping[str, UInt8[np.ndarray, "rows columns 3"]]
