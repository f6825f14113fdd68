"""The array types and records used throughout the package.

Shapes are per example; a function of one image is batched by `jax.vmap`.

| letter | meaning |
|---|---|
| `h w c` | rows, columns and channels of an image or latent |
| `n` | number of patches in an image (in raster order unless a `View` reorders them) |
| `d` | width of the network |
| `b` | number of images in a batch |
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

Image = Float[Array, "h w c"]
"""One image with values in [-1, 1], or a latent, whose range depends on its tokenizer."""
Latent = Float[Array, "lh lw lc"]
"""The latent of one image, as encoded by a tokenizer. A latent network receives it as an `Image`."""
Images = Float[Array, "b h w c"]
Tokens = Float[Array, "n d"]
Vector = Float[Array, "d"]
Scalar = Float[Array, ""]
Time = Float[Array, ""]
"""Time of a path, in [0, 1]: 0 is clean, 1 is noise."""
NetworkTime = Float[Array, ""]
"""The time as passed to the network: 0 is clean, 1000 is noise (`AbstractPath.network_time`)."""
Label = Int[Array, ""] | int
"""A class, 0 .. num_classes - 1, or `NO_CLASS`. Either a (possibly traced) array or a Python integer."""
NO_CLASS = -1
"""The label for unconditional predictions: classifier-free guidance, clean images, representations.

Networks have a separate embedding for it. It never occurs as a label in a data set with classes, and is the label of
every image in one without.
"""
Metrics = dict[str, Num[Array, ""]]
FeatureKind = Literal["class_tokens", "patches", "both"]
"""Features of an image: the mean of the class tokens, the mean of the patches, or their concatenation."""


class Batch(eqx.Module):
    """Images with their labels. `valid` is False for the padding rows in the last batch of an evaluation."""

    image: Float[Array | np.ndarray, "b h w c"]
    label: Int[Array | np.ndarray, "b"]
    valid: Bool[Array | np.ndarray, "b"]


class AbstractCond(eqx.Module):
    """Base class for conditioning: everything that a network receives besides the image, as one PyTree.

    `t` is the network time (`AbstractPath.network_time`), one for the image or, with a trailing axis, one for each
    patch. `y` is the label. The network embeds these fields and creates conditioning of the type that it supports
    (`AbstractModel.cond`); objectives, samplers and guidance pass it through. In a batch, the fields have leading batch
    axes.
    """

    t: eqx.AbstractVar[Float[Array, "..."]]
    y: eqx.AbstractVar[Int[Array, "..."]]

    @abc.abstractmethod
    def at(self, t: Float[Array, "..."]) -> "AbstractCond":
        """Returns the same conditioning at another network time."""

    def unlabelled(self) -> "AbstractCond":
        """Returns the same conditioning without the label: `y` is `NO_CLASS`."""
        return dataclasses.replace(self, y=jnp.full_like(self.y, NO_CLASS))


class Cond(AbstractCond):
    """Conditioning on network time and label."""

    t: Float[Array, "..."]
    y: Int[Array, "..."]

    def at(self, t: Float[Array, "..."]) -> "Cond":
        """Returns the same conditioning at another network time."""
        return Cond(t, self.y)


class IntervalCond(AbstractCond):
    """Conditioning on two network times r <= t and a label, for a network that predicts average velocities (MeanFlow).

    For r = t its prediction is the velocity at t.
    """

    t: Float[Array, "..."]
    y: Int[Array, "..."]
    r: Float[Array, "..."]

    def at(self, t: Float[Array, "..."], r: Float[Array, "..."] | None = None) -> "IntervalCond":
        """Returns the same conditioning for the interval from `r` to `t`; `r` defaults to `t`."""
        return IntervalCond(t, self.y, t if r is None else r)


class Representation(eqx.Module):
    """The representation of one image, taken after the encoder's last LayerNorm.

    `class_tokens` is the mean of the class tokens (the reference's "pre_logits"), `patches` the mean of the patches.
    """

    class_tokens: Vector
    patches: Vector

    def of(self, kind: FeatureKind) -> Float[Array, "features"]:
        """Returns the features of one kind, or the concatenation of both."""
        if kind == "both":
            return jnp.concatenate([self.class_tokens, self.patches])
        return self.class_tokens if kind == "class_tokens" else self.patches


class DataSpec(NamedTuple):
    """The properties of a data set that other modules depend on. Sizes are None if the images differ in size."""

    name: str
    num_train: int
    num_test: int
    height: int | None
    width: int | None
    channels: int
    num_classes: int


class LatentSpec(NamedTuple):
    """The properties of latents that other modules depend on.

    `factor` is the downsampling factor along each side and `channels` the number of latent channels. `digest` is the
    fingerprint of the tokenizer, or None if it has not been read. `stored` is the fingerprint of the latents on disk,
    or None if images are encoded during training.
    """

    factor: int
    channels: int
    digest: str | None = None
    stored: str | None = None


def same_tokenizer(digest: object, other: object) -> bool:
    """Whether two fingerprints (`umd_eqx.runs.tokenizers.fingerprint`), or two None, belong to the same tokenizer.

    Older fingerprints have 16 digits and do not cover the settings of a tokenizer. Such a fingerprint matches that of
    every tokenizer with the same weights, shift and scale.
    """
    if isinstance(digest, str) and isinstance(other, str):
        short, long = sorted((digest, other), key=len)
        return short == long or (len(short) == 16 and len(long) == 32 and long.startswith(short))
    return digest == other


class Report(NamedTuple):
    """The result of an evaluator: scalars by slash-separated name, and images as uint8 (rows, columns, 3)."""

    scalars: Mapping[str, float]
    images: Mapping[str, UInt8[np.ndarray, "rows columns 3"]]
