"""The ViT auto-encoder: an encoder on the visible patches and a decoder that predicts all patches.

The published network (arXiv 2406.17688, section 3, and its code) passes class tokens and visible patches through the
encoder. The decoder receives the mean of the class tokens and every patch in raster order, with a learned embedding in
place of hidden patches. The head predicts the clean image and the noise for every pixel.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.masking import View, hide, patchify, restore, unpatchify
from umd_eqx.core.predictions import AbstractPrediction, PredictionType, VPrediction, X0EpsPrediction, X0Prediction
from umd_eqx.core.types import NO_CLASS, AbstractCond, Image, Label, Representation, Tokens, Vector
from umd_eqx.models.base import AbstractLayeredModel, Group, over_rows
from umd_eqx.models.vit.blocks import modulate
from umd_eqx.models.vit.embedders import AbstractCondEmbedder
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.packed import Embedded, Packed, Segment, conditioned, pack, unpack
from umd_eqx.models.vit.stack import Stack


class Head(eqx.Module):
    """Maps tokens to pixels: modulation by c, if the blocks are modulated, then one linear layer on each patch.

    The linear layer is the reference's transposed convolution with kernel = stride = patch. It returns the predicted
    channels of each pixel: 2 C channels for the clean image and the noise, in this order.
    """

    modulation: Linear | None
    kernel: Float[Array, "decoder_d values"]
    bias: Float[Array, "predicted_channels"]

    def __call__(self, packed: Packed, c: Embedded) -> Float[Array, "rows length values"]:
        """Returns the predicted values of each patch."""
        x = packed.tokens
        if self.modulation is not None:
            halves = jnp.split(self.modulation(jax.nn.silu(c.c)), 2, axis=-1)
            x = conditioned(modulate, packed.segments, [x], [Embedded(half, c.per_token) for half in halves])
        rows = x.reshape(-1, x.shape[-1])
        # The bias is per channel and shared by the pixels of a patch.
        pixels = (rows @ self.kernel.astype(rows.dtype)).reshape(len(rows), -1, self.bias.size)
        return (pixels + self.bias.astype(rows.dtype)).reshape(*x.shape[:2], -1)


class _EmbeddedConds(NamedTuple):
    """The embedded conditioning c for the encoder tokens, the decoder tokens, and the patch tokens of the head."""

    encoder: Embedded
    decoder: Embedded
    head: Embedded


class AutoEncoder(AbstractLayeredModel):
    """The network of all published systems, built by `ModelConfig.build` or, from published weights, `from_reference`.

    `bridge` projects from the encoder's width to the decoder's; it is None if they are equal, as in the paper.
    `dtype` is the dtype of the tokens; parameters and predictions are float32.

    The network is conditioned on one time per image, or on one time per patch if `cond.t` has a patch axis. In the
    latter case each patch token is modulated by its own time, and tokens of the whole image by the mean of the times.
    """

    embed: Linear
    positions: Float[Array, "n d"]
    class_tokens: Float[Array, "k d"]
    registers: Float[Array, "registers d"] | None
    condition: AbstractCondEmbedder
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
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    @property
    def accepts_patch_times(self) -> bool:
        """Whether the blocks are conditioned by AdaLN: one token cannot hold the times of all patches."""
        return self.encoder.conditioning.accepts_per_token

    def cond(self, y: Label = NO_CLASS) -> AbstractCond:
        """Returns the conditioning for a clean image, in the type that its embedders accept: time 0 and the label."""
        return self.condition.cond(y)

    def __call__(
        self, x: Image, cond: AbstractCond, view: View | None = None, *, key: PRNGKeyArray | None = None
    ) -> AbstractPrediction:
        """Returns the prediction for every pixel, hidden or visible. Deterministic: `key` is not used."""
        (prediction,) = self.forward_groups([_group_of_one(x, cond, view)])
        return jax.tree.map(lambda leaf: leaf[0, 0], prediction)

    def forward_groups(self, groups: Sequence[Group]) -> list[AbstractPrediction]:
        """Processes all groups in one pass, which reads each weight once.

        Raises `ValueError` if some groups have one time per patch and others one time per image.
        """
        c = self._embed_conds(groups)
        decoded = self.decoder(self._decoder_input(self._encode(groups, c.encoder), groups), c.decoder)
        without = tuple(Segment(segment.images, segment.tokens - 1) for segment in decoded.segments)
        patches = pack([group[:, :, 1:] for group in unpack(decoded.tokens, decoded.segments)])
        positions = pack([group[:, :, 1:] for group in unpack(decoded.positions, decoded.segments)])
        values = self.head(Packed(patches, positions, without), c.head)
        return [over_rows(self._prediction)(group) for group in unpack(values, without)]

    def represent(
        self, x: Image, cond: AbstractCond, branches: Float[Array, "depth 2"] | None = None
    ) -> Representation:
        """Returns the mean of the class tokens (the reference's representation) and the mean of the patches.

        `branches` are factors of the residual branches of the encoder's blocks (`Stack`). None: 1.
        """
        group = _group_of_one(x, cond, None)
        return self._encoder_means(self._encode([group], self._embed_conds([group]).encoder, branches))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the blocks: `encoder 1`, `encoder 2`, ..., `decoder 1`, ..."""
        stacks = {"encoder": self.encoder, "decoder": self.decoder}
        return tuple(f"{name} {n}" for name, stack in stacks.items() for n in range(1, 1 + stack.depth))

    @property
    def represented_layer(self) -> int:
        """The number of the last block of the encoder."""
        return self.encoder.depth

    def represent_layers(self, x: Image, cond: AbstractCond) -> tuple[Representation, ...]:
        """Returns the representation after each block of the encoder and of the decoder, every patch being visible.

        Each is taken after the last LayerNorm of the encoder or of the decoder, because every block normalises its
        input: for all but the last block, the scale and bias of that LayerNorm are those of another block, but a probe
        that standardises features ignores them. The decoder has one token in the place of the class tokens.
        """
        group = _group_of_one(x, cond, None)
        c = self._embed_conds([group])
        encoded, before = self.encoder.read_each(self._encoder_input([group]), c.encoder, self._encoder_means)
        _, after = self.decoder.read_each(self._decoder_input(encoded, [group]), c.decoder, _decoder_means)
        return (*_unstacked(before), *_unstacked(after))

    def _encoder_means(self, packed: Packed) -> Representation:
        k, tokens = self.class_tokens.shape[0], packed.tokens[0]
        return Representation(_mean(tokens[:k]), _mean(tokens[self._first_patch :]))

    def _embed_conds(self, groups: Sequence[Group]) -> _EmbeddedConds:
        per_patch = {group.cond.t.ndim == 3 for group in groups}
        if len(per_patch) > 1:
            raise ValueError("groups with one time per patch and groups with one time per image cannot share a pass")
        if not per_patch.pop():
            c = Embedded(pack([over_rows(self.condition)(group.cond)[:, :, None] for group in groups]))
            c = c.map(lambda entries: entries.astype(self.dtype))
            return _EmbeddedConds(c, c, c)
        encoder, decoder, head = zip(*(self._patch_conds(group) for group in groups), strict=True)
        return _EmbeddedConds(*(Embedded(pack(parts), per_token=True) for parts in (encoder, decoder, head)))

    def _patch_conds(self, group: Group) -> tuple[Array, Array, Array]:
        """Returns c for each token of the encoder, of the decoder and of the head, (rows, count, tokens, d)."""

        def of_image(cond: AbstractCond, view: View | None) -> tuple[Array, Array, Array]:
            of_patches = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, cond)  # one label per image
            patches = jax.vmap(self.condition, in_axes=(of_patches,))(cond).astype(self.dtype)
            mean = jax.tree.map(lambda leaf: jnp.mean(leaf) if leaf.ndim else leaf, cond)
            whole = self.condition(mean)[None].astype(self.dtype)
            visible = patches if view is None else hide(patches, view)
            first = jnp.broadcast_to(whole, (self._first_patch, whole.shape[1]))
            return jnp.concatenate([first, visible]), jnp.concatenate([whole, patches]), patches

        return over_rows(of_image)(group.cond, group.views)

    def _encode(self, groups: Sequence[Group], c: Embedded, branches: Float[Array, "depth 2"] | None = None) -> Packed:
        """Returns class tokens, registers and visible patches in the order of their view, after the last LayerNorm."""
        return self.encoder(self._encoder_input(groups), c, branches)

    def _encoder_input(self, groups: Sequence[Group]) -> Packed:
        """Returns class tokens, registers and embedded visible patches.

        Raises `ValueError` if the images do not have the network's image shape.
        """
        for group in groups:  # another shape with the same number of patches would not be noticed
            if group.x.shape[2:] != self.image_shape:
                raise ValueError(f"images have shape {group.x.shape[2:]}, but the network expects {self.image_shape}")
        pixels = [over_rows(partial(patchify, patch=self.patch))(group.x).astype(self.dtype) for group in groups]
        patches = tuple(Segment(*values.shape[1:3]) for values in pixels)
        learned = self.class_tokens
        if self.registers is not None:
            learned = jnp.concatenate([learned, self.registers])
        learned = learned.astype(self.dtype)
        tokens, places = [], []
        for embedded, group in zip(unpack(self.embed(pack(pixels)), patches), groups, strict=True):
            visible = embedded + self.positions.astype(self.dtype)  # rows, count, n, d
            where = jnp.broadcast_to(self._grid(), (*visible.shape[:3], 2))
            if group.views is not None:
                visible, where = (over_rows(hide)(x, group.views) for x in (visible, where))
            first = jnp.broadcast_to(learned, (*visible.shape[:2], *learned.shape))
            tokens.append(jnp.concatenate([first, visible], axis=2))
            places.append(jnp.pad(where, ((0, 0), (0, 0), (len(learned), 0), (0, 0))))
        segments = tuple(Segment(*values.shape[1:3]) for values in tokens)
        return Packed(pack(tokens), pack(places), segments)

    def _decoder_input(self, encoded: Packed, groups: Sequence[Group]) -> Packed:
        k = self.class_tokens.shape[0]
        kept = []
        for tokens in unpack(encoded.tokens, encoded.segments):
            summary = over_rows(_mean)(tokens[:, :, :k])[:, :, None].astype(self.dtype)
            kept.append(jnp.concatenate([summary, tokens[:, :, self._first_patch :]], axis=2))  # 1 + kept tokens
        if self.bridge is not None:
            kept = unpack(self.bridge(pack(kept)), tuple(Segment(*tokens.shape[1:3]) for tokens in kept))
        whole = []
        for tokens, group in zip(kept, groups, strict=True):
            patches = tokens[:, :, 1:]
            if group.views is not None:
                patches = over_rows(lambda p, view: restore(p, self.mask_token, view))(patches, group.views)
            patches = patches + self.decoder_positions.astype(self.dtype)
            whole.append(jnp.concatenate([tokens[:, :, :1], patches], axis=2))
        grid = jnp.pad(self._grid(), ((1, 0), (0, 0)))
        places = [jnp.broadcast_to(grid, (*tokens.shape[:3], 2)) for tokens in whole]
        segments = tuple(Segment(*tokens.shape[1:3]) for tokens in whole)
        return Packed(pack(whole), pack(places), segments)

    @property
    def _first_patch(self) -> int:
        return len(self.class_tokens) + (0 if self.registers is None else len(self.registers))

    def _grid(self) -> Float[Array, "n 2"]:
        rows, columns = self.image_shape[0] // self.patch, self.image_shape[1] // self.patch
        grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
        return jnp.asarray(1 + grid.reshape(-1, 2), jnp.float32)

    def _prediction(self, patches: Float[Array, "n values"]) -> AbstractPrediction:
        height, width, channels = self.image_shape
        pixels = unpatchify(patches.astype(jnp.float32), self.patch, height, width)
        match self.prediction:
            case "x0_eps":
                return X0EpsPrediction(pixels[..., :channels], pixels[..., channels:])
            case "x0":
                return X0Prediction(pixels)
            case "v" | "u":
                return VPrediction(pixels)


def _group_of_one(x: Image, cond: AbstractCond, view: View | None) -> Group:
    cond, views = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], (cond, view))
    return Group(x[None, None], cond, views)


def _decoder_means(packed: Packed) -> Representation:
    return Representation(packed.tokens[0, 0].astype(jnp.float32), _mean(packed.tokens[0, 1:]))


def _unstacked(stacked: Representation) -> tuple[Representation, ...]:
    return tuple(map(Representation, stacked.class_tokens, stacked.patches))


def _mean(tokens: Tokens) -> Vector:
    # In float32: a bfloat16 mean over hundreds of tokens loses precision that linear probes depend on.
    return jnp.mean(tokens.astype(jnp.float32), axis=0)
