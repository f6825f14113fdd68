"""The ViT auto-encoder of every system: an encoder that sees the visible patches, a decoder that predicts them all.

The published network (arXiv 2406.17688, section 3, and its code): class tokens and visible patches go through the
encoder; the decoder sees the mean of the class tokens, then every patch in raster order, hidden ones as one learned
embedding; the head predicts the clean image and the noise for every pixel.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.masking import View, hide, patchify, restore, unpatchify
from umd_eqx.models.layers import Linear, matmul, sinusoid
from umd_eqx.models.stack import Stack
from umd_eqx.types import Image, Label, NetworkTime, Prediction, Representation, Tokens, Vector


class AbstractModel(eqx.Module):
    """What an objective, a sampler or an evaluator may ask of a network. One image at a time: use `jax.vmap`.

    `num_classes` is None where the network knows no labels; it then ignores `y`. Label `num_classes` is "no class".
    `patch` is the side of a patch and `num_patches` how many an image has: what a mask is drawn over.
    """

    num_classes: eqx.AbstractVar[int | None]
    patch: eqx.AbstractVar[int]
    num_patches: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self, x: Image, t: NetworkTime, y: Label, view: View | None = None, *, key: PRNGKeyArray | None = None
    ) -> Prediction:
        """Predicts the clean image and the noise. `x` is the noised image; without a view every patch is visible."""

    @abc.abstractmethod
    def represent(self, x: Image, t: NetworkTime, y: Label) -> Representation:
        """What the encoder makes of the whole image."""


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
    """c = trunk(sinusoid(t)) + trunk(label table[y]); without a label table, the first term alone."""

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
        # One row more than classes: the last is "no class".
        table = jax.random.normal(table_key, (num_classes + 1, width)) / width**0.5
        return cls(time, table, Trunk.init(width, key=label_key))

    def __call__(self, t: NetworkTime, y: Label) -> Vector:
        """c, in float32."""
        c = self.time(sinusoid(t, self.time.down.kernel.shape[1]))
        if self.label_table is None or self.label is None:
            return c
        return c + self.label(self.label_table[y])


class Head(eqx.Module):
    """Tokens to pixels: a shift and scale from c where the blocks have them, then every patch by one linear layer.

    The linear layer is the reference's transposed convolution of kernel = stride = patch. Per pixel it gives 2 C
    channels: the clean image, then the noise.
    """

    modulation: Linear | None
    kernel: Float[Array, "decoder_d values"]
    bias: Float[Array, "two_channels"]

    def __call__(self, x: Tokens, c: Float[Array, "condition"]) -> Float[Array, "n values"]:
        """The values of each patch."""
        if self.modulation is not None:
            shift, scale = jnp.split(self.modulation(jax.nn.silu(c)), 2)
            x = x * (1.0 + scale) + shift
        pixels = matmul(x, self.kernel.astype(x.dtype)).reshape(x.shape[0], -1, self.bias.size)
        return (pixels + self.bias.astype(x.dtype)).reshape(x.shape[0], -1)  # one bias per channel, for every pixel


class AutoEncoder(AbstractModel):
    """The network of all published systems, built by `ModelConfig.build` or, from published weights, `from_reference`.

    `bridge` brings the encoder's width to the decoder's and is None where they are equal, as in the paper.
    `dtype` is what the tokens are computed in; parameters and predictions are float32.
    """

    embed: Linear
    positions: Float[Array, "n d"]
    class_tokens: Float[Array, "k d"]
    condition: Condition
    encoder: Stack
    bridge: Linear | None
    mask_token: Float[Array, "decoder_d"]
    decoder_positions: Float[Array, "n decoder_d"]
    decoder: Stack
    head: Head
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    @property
    def num_patches(self) -> int:
        """Patches in an image."""
        return self.positions.shape[0]

    def __call__(
        self, x: Image, t: NetworkTime, y: Label, view: View | None = None, *, key: PRNGKeyArray | None = None
    ) -> Prediction:
        """Predicts the clean image and the noise of every pixel, hidden or not. Deterministic: `key` is not used."""
        c = self.condition(t, y).astype(self.dtype)  # d
        class_tokens, patches = self.encode(x, c, view)  # k d, kept d
        return self.decode(class_tokens, patches, c, view)

    def represent(self, x: Image, t: NetworkTime, y: Label) -> Representation:
        """The mean of the class tokens (the reference's representation) and the mean of the patches."""
        class_tokens, patches = self.encode(x, self.condition(t, y).astype(self.dtype), None)
        return Representation(_mean(class_tokens), _mean(patches))

    def encode(self, x: Image, c: Vector, view: View | None) -> tuple[Float[Array, "k d"], Float[Array, "kept d"]]:
        """Class tokens and visible patches after the encoder's last LayerNorm; patches in the order of the view."""
        tokens = self.embed(patchify(x, self.patch).astype(self.dtype)) + self.positions.astype(self.dtype)  # n d
        visible = tokens if view is None else hide(tokens, view)  # kept d
        k = self.class_tokens.shape[0]
        x = self.encoder(jnp.concatenate([self.class_tokens.astype(self.dtype), visible]), c)  # k + kept, d
        return x[:k], x[k:]

    def decode(
        self, class_tokens: Float[Array, "k d"], patches: Float[Array, "kept d"], c: Vector, view: View | None
    ) -> Prediction:
        """Every pixel, from the mean of the class tokens and the encoded patches."""
        tokens = jnp.concatenate([_mean(class_tokens)[None].astype(self.dtype), patches])  # 1 + kept, d
        if self.bridge is not None:
            tokens = self.bridge(tokens)
        summary, patches = tokens[:1], tokens[1:]
        if view is not None:
            patches = restore(patches, self.mask_token, view)  # n, decoder_d
        patches = patches + self.decoder_positions.astype(self.dtype)
        x = self.decoder(jnp.concatenate([summary, patches]), c)[1:]  # n, decoder_d
        height, width, channels = self.image_shape
        pixels = unpatchify(self.head(x, c).astype(jnp.float32), self.patch, height, width)  # h w 2c
        return Prediction(x0=pixels[..., :channels], eps=pixels[..., channels:])


def _mean(tokens: Tokens) -> Vector:
    # In float32: a mean over hundreds of bfloat16 tokens loses what a linear probe reads.
    return jnp.mean(tokens.astype(jnp.float32), axis=0)
