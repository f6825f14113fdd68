"""The ViT auto-encoder of every system: an encoder that sees the visible patches, a decoder that predicts them all.

The published network (arXiv 2406.17688, section 3, and its code): class tokens and visible patches go through the
encoder; the decoder sees the mean of the class tokens, then every patch in raster order, hidden ones as one learned
embedding; the head predicts the clean image and the noise for every pixel.
"""

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from umd_eqx.masking import View, hide, patchify, restore, unpatchify
from umd_eqx.models.blocks import shifted
from umd_eqx.models.layers import Linear, sinusoid
from umd_eqx.models.packed import Embedded, Packed, Segment, conditioned, pack, unpack
from umd_eqx.models.stack import Stack
from umd_eqx.types import NO_CLASS, Image, Label, NetworkTime, Prediction, Representation, Tokens, Vector


class Part(eqx.Module):
    """Images of a batch that are treated alike: `count` in each of its rows, all with one number of visible patches.

    `views` holds the view of each (as `jax.vmap` returns it), or is None where every patch is visible.
    """

    x: Float[Array, "rows count h w c"]
    t: Float[Array, "rows count"]
    y: Int[Array, "rows count"]
    views: View | None


class AbstractModel(eqx.Module):
    """What an objective, a sampler or an evaluator may ask of a network. One image at a time: use `jax.vmap`.

    `num_classes` is None where the network knows no labels; it then ignores `y`. Otherwise `y` is a class, 0 ..
    num_classes - 1, or `NO_CLASS`, the default. For any other number the result is NaN, but for `num_classes`, which is
    the reference's number for `NO_CLASS`.
    `image_shape` is (rows, columns, channels) of an image, `patch` the side of a patch and `num_patches` how many an
    image has: what a mask is drawn over.
    """

    image_shape: eqx.AbstractVar[tuple[int, int, int]]
    num_classes: eqx.AbstractVar[int | None]
    patch: eqx.AbstractVar[int]
    num_patches: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self,
        x: Image,
        t: NetworkTime,
        y: Label = NO_CLASS,
        view: View | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Prediction:
        """Predicts the clean image and the noise. `x` is the noised image; without a view every patch is visible."""

    @abc.abstractmethod
    def represent(self, x: Image, t: NetworkTime, y: Label = NO_CLASS) -> Representation:
        """What the encoder makes of the whole image."""

    def together(self, parts: Sequence[Part]) -> list[Prediction]:
        """Predictions for images with different views: for each part a `Prediction` with its two leading axes.

        One after the other, unless a network knows how to share the work. The numbers are the same.
        """
        return [_every(self)(part.x, part.t, part.y, part.views) for part in parts]


class Trunk(eqx.Module):
    """Two linear layers with a SiLU and twice the width between them, on an embedding."""

    up: Linear
    down: Linear

    @classmethod
    def init(cls, width: int, *, key: PRNGKeyArray) -> "Trunk":
        """A fresh trunk."""
        up_key, down_key = jax.random.split(key)
        return cls(Linear.init(width, 2 * width, key=up_key), Linear.init(2 * width, width, key=down_key))

    def __call__(self, embedding: Vector) -> Vector:
        """Of one embedding."""
        return self.down(jax.nn.silu(self.up(embedding)))


class Condition(eqx.Module):
    """c = trunk(sinusoid(t)) + trunk(label table[y]); without a label table, the first term alone.

    The table has a row for each class, and row `num_classes` for `NO_CLASS` (as in the reference, whose number for it
    this is).
    """

    time: Trunk
    label_table: Float[Array, "classes d"] | None
    label: Trunk | None

    @classmethod
    def init(cls, width: int, num_classes: int | None, *, key: PRNGKeyArray) -> "Condition":
        """Without a label table where `num_classes` is None."""
        time_key, table_key, label_key = jax.random.split(key, 3)
        time = Trunk.init(width, key=time_key)
        if num_classes is None:
            return cls(time, None, None)
        table = jax.random.normal(table_key, (num_classes + 1, width), jnp.float32) / width**0.5
        return cls(time, table, Trunk.init(width, key=label_key))

    def __call__(self, t: NetworkTime, y: Label) -> Vector:
        """c, in float32. NaN for a label that is not a row of the table, `NO_CLASS` aside."""
        c = self.time(sinusoid(t, self.time.down.kernel.shape[1]))
        if self.label_table is None or self.label is None:
            return c
        last = self.label_table.shape[0] - 1
        row = jnp.where(jnp.asarray(y) == NO_CLASS, last, y)
        # By default an index is wrapped and clipped to the table, and nearly every bad label ends in its last row.
        embedding = self.label_table.at[row].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return c + self.label(embedding)


class Head(eqx.Module):
    """Tokens to pixels: a shift and scale from c where the blocks have them, then every patch by one linear layer.

    The linear layer is the reference's transposed convolution of kernel = stride = patch. Per pixel it gives 2 C
    channels: the clean image, then the noise.
    """

    modulation: Linear | None
    kernel: Float[Array, "decoder_d values"]
    bias: Float[Array, "two_channels"]

    def __call__(self, packed: Packed, c: Embedded) -> Float[Array, "rows length values"]:
        """The pixel values of each patch."""
        x = packed.tokens
        if self.modulation is not None:
            halves = jnp.split(self.modulation(jax.nn.silu(c.c)), 2, axis=-1)
            x = conditioned(shifted, packed.segments, [x], [Embedded(half, c.per_token) for half in halves])
        rows = x.reshape(-1, x.shape[-1])
        # One bias per channel, for every pixel of a patch.
        pixels = (rows @ self.kernel.astype(rows.dtype)).reshape(len(rows), -1, self.bias.size)
        return (pixels + self.bias.astype(rows.dtype)).reshape(*x.shape[:2], -1)


class AutoEncoder(AbstractModel):
    """The network of all published systems, built by `ModelConfig.build` or, from published weights, `from_reference`.

    `bridge` brings the encoder's width to the decoder's and is None where they are equal, as in the paper.
    `dtype` is what the tokens are computed in; parameters and predictions are float32.
    """

    embed: Linear
    positions: Float[Array, "n d"]
    class_tokens: Float[Array, "k d"]
    registers: Float[Array, "registers d"] | None
    condition: Condition
    encoder: Stack
    bridge: Linear | None
    mask_token: Float[Array, "decoder_d"]
    decoder_positions: Float[Array, "n decoder_d"]
    decoder: Stack
    head: Head
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    num_patches: int = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    def __call__(
        self,
        x: Image,
        t: NetworkTime,
        y: Label = NO_CLASS,
        view: View | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Prediction:
        """Predicts the clean image and the noise of every pixel, hidden or not. Deterministic: `key` is not used."""
        (prediction,) = self.together([_alone(x, t, y, view)])
        return Prediction(prediction.x0[0, 0], prediction.eps[0, 0])

    def together(self, parts: Sequence[Part]) -> list[Prediction]:
        """All parts in one pass, which reads each weight once."""
        c = self.conditions(parts)
        decoded = self.decoder(self._decoder_input(self.encode(parts, c), parts), c)
        without = tuple(Segment(segment.images, segment.tokens - 1) for segment in decoded.segments)
        patches = pack([group[:, :, 1:] for group in unpack(decoded.tokens, decoded.segments)])
        positions = pack([group[:, :, 1:] for group in unpack(decoded.positions, decoded.segments)])
        values = self.head(Packed(patches, positions, without), c)
        return [_every(self._prediction)(group) for group in unpack(values, without)]

    def represent(self, x: Image, t: NetworkTime, y: Label = NO_CLASS) -> Representation:
        """The mean of the class tokens (the reference's representation) and the mean of the patches."""
        part = _alone(x, t, y, None)
        tokens = self.encode([part], self.conditions([part])).tokens[0]  # k + n, d
        k, first = self.class_tokens.shape[0], self._first_patch
        return Representation(_mean(tokens[:k]), _mean(tokens[first:]))

    def conditions(self, parts: Sequence[Part]) -> Embedded:
        """c of each image."""
        c = [_every(self.condition)(part.t, part.y) for part in parts]
        return Embedded(jnp.concatenate(c, axis=1).astype(self.dtype))

    def encode(self, parts: Sequence[Part], c: Embedded) -> Packed:
        """Class tokens, registers, then visible patches in the order of their view, after the last LayerNorm.

        Raises `ValueError` for images of another shape than the network's.
        """
        for part in parts:  # another shape with as many patches would pass unseen
            if part.x.shape[2:] != self.image_shape:
                raise ValueError(f"images of shape {part.x.shape[2:]} for a network of {self.image_shape}")
        pixels = [_every(partial(patchify, patch=self.patch))(part.x).astype(self.dtype) for part in parts]
        patches = tuple(Segment(*group.shape[1:3]) for group in pixels)
        learned = self.class_tokens
        if self.registers is not None:
            learned = jnp.concatenate([learned, self.registers])
        learned = learned.astype(self.dtype)
        tokens, places = [], []
        for embedded, part in zip(unpack(self.embed(pack(pixels)), patches), parts, strict=True):
            visible = embedded + self.positions.astype(self.dtype)  # rows, count, n, d
            where = jnp.broadcast_to(self._grid(), (*visible.shape[:3], 2))
            if part.views is not None:
                visible, where = (_every(hide)(x, part.views) for x in (visible, where))
            first = jnp.broadcast_to(learned, (*visible.shape[:2], *learned.shape))
            tokens.append(jnp.concatenate([first, visible], axis=2))
            places.append(jnp.pad(where, ((0, 0), (0, 0), (len(learned), 0), (0, 0))))
        segments = tuple(Segment(*group.shape[1:3]) for group in tokens)
        return self.encoder(Packed(pack(tokens), pack(places), segments), c)

    def _decoder_input(self, encoded: Packed, parts: Sequence[Part]) -> Packed:
        k = self.class_tokens.shape[0]
        groups = []
        for tokens in unpack(encoded.tokens, encoded.segments):
            summary = _every(_mean)(tokens[:, :, :k])[:, :, None].astype(self.dtype)
            groups.append(jnp.concatenate([summary, tokens[:, :, self._first_patch :]], axis=2))  # 1 + kept tokens
        if self.bridge is not None:
            groups = unpack(self.bridge(pack(groups)), tuple(Segment(*group.shape[1:3]) for group in groups))
        decoder_groups = []
        for tokens, part in zip(groups, parts, strict=True):
            patches = tokens[:, :, 1:]
            if part.views is not None:
                patches = _every(lambda p, view: restore(p, self.mask_token, view))(patches, part.views)
            patches = patches + self.decoder_positions.astype(self.dtype)
            decoder_groups.append(jnp.concatenate([tokens[:, :, :1], patches], axis=2))
        places = [
            jnp.broadcast_to(jnp.pad(self._grid(), ((1, 0), (0, 0))), (*group.shape[:3], 2)) for group in decoder_groups
        ]
        segments = tuple(Segment(*group.shape[1:3]) for group in decoder_groups)
        return Packed(pack(decoder_groups), pack(places), segments)

    @property
    def _first_patch(self) -> int:
        return len(self.class_tokens) + (0 if self.registers is None else len(self.registers))

    def _grid(self) -> Float[Array, "n 2"]:
        rows, columns = self.image_shape[0] // self.patch, self.image_shape[1] // self.patch
        grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
        return jnp.asarray(1 + grid.reshape(-1, 2), jnp.float32)

    def _prediction(self, patches: Float[Array, "n values"]) -> Prediction:
        height, width, channels = self.image_shape
        pixels = unpatchify(patches.astype(jnp.float32), self.patch, height, width)  # h w 2c
        return Prediction(x0=pixels[..., :channels], eps=pixels[..., channels:])


def _alone(x: Image, t: NetworkTime, y: Label, view: View | None) -> Part:
    views = jax.tree.map(lambda leaf: leaf[None, None], view)
    return Part(x[None, None], jnp.asarray(t)[None, None], jnp.asarray(y)[None, None], views)


def _every(function: Callable[..., Any]) -> Callable[..., Any]:
    # Over both leading axes: the rows of a batch, and the images of a row.
    return jax.vmap(jax.vmap(function))


def _mean(tokens: Tokens) -> Vector:
    # In float32: a mean over hundreds of bfloat16 tokens loses what a linear probe reads.
    return jnp.mean(tokens.astype(jnp.float32), axis=0)
