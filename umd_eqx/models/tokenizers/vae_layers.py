"""The layers of a convolutional auto-encoder, for one image (rows, columns, channels).

They are those of the Stable Diffusion VAE (Rombach et al. 2022, appendix D.1, and its code) with the channels last:
kernels are (rows, columns, inputs, outputs). Parameters are float32; a layer computes in the dtype of its input.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.models.vit.layers import Linear, lecun_normal

GROUP_NORM_EPS = 1e-6


class Conv(eqx.Module):
    """A convolution (cross-correlation) with bias and zero padding."""

    kernel: Float[Array, "k k inputs outputs"]
    bias: Float[Array, "outputs"]
    stride: int = eqx.field(static=True, default=1)
    padding: tuple[int, int] = eqx.field(static=True, default=(1, 1))

    @classmethod
    def init(
        cls, inputs: int, outputs: int, *, key: PRNGKeyArray, side: int = 3, gain: float = 1.0, stride: int = 1
    ) -> "Conv":
        """Returns a freshly initialised layer, which preserves the size of its input or, at stride 2, halves it.

        `gain` multiplies the LeCun-normal initial kernel. A stride of 2 pads at the bottom and on the right only, as in
        the published network.
        """
        kernel = gain * lecun_normal(key, (side, side, inputs, outputs), jnp.float32)
        padding = (0, 1) if stride == 2 else (side // 2, side // 2)
        return cls(kernel, jnp.zeros(outputs, jnp.float32), stride, padding)

    def __call__(self, x: Float[Array, "h w inputs"]) -> Float[Array, "new_h new_w outputs"]:
        """Applies the layer to one image."""
        y = jax.lax.conv_general_dilated(
            x[None],
            self.kernel.astype(x.dtype),
            (self.stride, self.stride),
            (self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y[0] + self.bias.astype(x.dtype)


class GroupNorm(eqx.Module):
    """Group normalisation (Wu and He 2018) with scale and bias, eps 1e-6; statistics in float32."""

    scale: Float[Array, "c"]
    bias: Float[Array, "c"]
    groups: int = eqx.field(static=True)

    @classmethod
    def init(cls, channels: int, groups: int) -> "GroupNorm":
        """Returns a layer with scale 1 and bias 0; `groups` must divide `channels`."""
        return cls(jnp.ones(channels, jnp.float32), jnp.zeros(channels, jnp.float32), groups)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Normalises each group of channels over the whole image."""
        h, w, c = x.shape
        rows = x.astype(jnp.float32).reshape(h * w, c)
        # First over the pixels of a channel, then over the channels of a group: sums along a short last axis are slow
        # on a CPU.
        mean = jnp.mean(rows, axis=0)
        variance = jnp.mean((rows - mean) ** 2, axis=0)
        group_mean = self._among_groups(mean)
        group_variance = self._among_groups(variance + (mean - group_mean) ** 2)
        normal = (rows - group_mean) * (jax.lax.rsqrt(group_variance + GROUP_NORM_EPS) * self.scale) + self.bias
        return normal.reshape(h, w, c).astype(x.dtype)

    def _among_groups(self, values: Float[Array, "c"]) -> Float[Array, "c"]:
        # Returns the mean of each group, repeated for each of its channels.
        return jnp.repeat(jnp.mean(values.reshape(self.groups, -1), axis=1), values.size // self.groups)


class ResnetBlock(eqx.Module):
    """A residual block of two convolutions, each after GroupNorm and SiLU; a 1 x 1 shortcut if the channels change."""

    norm1: GroupNorm
    conv1: Conv
    norm2: GroupNorm
    conv2: Conv
    shortcut: Conv | None

    @classmethod
    def init(cls, inputs: int, outputs: int, groups: int, *, key: PRNGKeyArray) -> "ResnetBlock":
        """Returns a freshly initialised block."""
        key1, key2, key3 = jax.random.split(key, 3)
        return cls(
            norm1=GroupNorm.init(inputs, groups),
            conv1=Conv.init(inputs, outputs, key=key1),
            norm2=GroupNorm.init(outputs, groups),
            # A small gain, with which a deep network is close to the identity at initialisation.
            conv2=Conv.init(outputs, outputs, key=key2, gain=0.1),
            shortcut=None if inputs == outputs else Conv.init(inputs, outputs, key=key3, side=1),
        )

    def __call__(self, x: Float[Array, "h w inputs"]) -> Float[Array, "h w outputs"]:
        """Applies the layer to one image."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(eqx.Module):
    """Residual single-head self-attention over the pixels."""

    norm: GroupNorm
    query: Linear
    key: Linear
    value: Linear
    out: Linear

    @classmethod
    def init(cls, channels: int, groups: int, *, key: PRNGKeyArray) -> "SpatialAttention":
        """Returns a freshly initialised block."""
        keys = jax.random.split(key, 4)
        layers = [Linear.init(channels, channels, key=k) for k in keys]
        return cls(GroupNorm.init(channels, groups), *layers)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Applies the layer to one image: every pixel attends to every pixel."""
        h, w, c = x.shape
        rows = self.norm(x).reshape(h * w, c)
        heads = [layer(rows)[:, None] for layer in (self.query, self.key, self.value)]  # pixels, 1 head, c
        mixed = jax.nn.dot_product_attention(*heads)[:, 0]
        return x + self.out(mixed).reshape(h, w, c)


class MidBlock(eqx.Module):
    """The middle of the network at the lowest resolution: a block, optional attention, and another block."""

    first: ResnetBlock
    attention: SpatialAttention | None
    second: ResnetBlock

    @classmethod
    def init(cls, channels: int, groups: int, *, attention: bool, key: PRNGKeyArray) -> "MidBlock":
        """Returns a freshly initialised block."""
        key1, key2, key3 = jax.random.split(key, 3)
        return cls(
            ResnetBlock.init(channels, channels, groups, key=key1),
            SpatialAttention.init(channels, groups, key=key2) if attention else None,
            ResnetBlock.init(channels, channels, groups, key=key3),
        )

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Applies the layer to one image."""
        x = self.first(x)
        return self.second(x if self.attention is None else self.attention(x))


class Level(eqx.Module):
    """Blocks at one resolution, followed by an optional convolution for downsampling or after 2 x upsampling."""

    blocks: tuple[ResnetBlock, ...]
    resample: Conv | None
    up: bool = eqx.field(static=True)

    @classmethod
    def init(
        cls, inputs: int, outputs: int, groups: int, blocks: int, *, up: bool, resample: bool, key: PRNGKeyArray
    ) -> "Level":
        """Returns a freshly initialised level of `blocks` blocks.

        With `resample`, the resolution is doubled if `up` and halved otherwise.
        """
        keys = jax.random.split(key, blocks + 1)
        widths = [inputs] + [outputs] * blocks
        pairs = zip(itertools.pairwise(widths), keys[1:], strict=True)
        layers = (ResnetBlock.init(*pair, groups, key=k) for pair, k in pairs)
        conv = Conv.init(outputs, outputs, key=keys[0], stride=1 if up else 2) if resample else None
        return cls(tuple(layers), conv, up)

    def __call__(self, x: Float[Array, "h w inputs"]) -> Float[Array, "new_h new_w outputs"]:
        """Applies the layer to one image."""
        for block in self.blocks:
            x = block(x)
        if self.resample is None:
            return x
        return self.resample(upsample(x) if self.up else x)


def upsample(x: Float[Array, "h w c"]) -> Float[Array, "two_h two_w c"]:
    """Upsamples an image by a factor of 2 (nearest neighbour)."""
    h, w, c = x.shape
    return jnp.broadcast_to(x[:, None, :, None], (h, 2, w, 2, c)).reshape(2 * h, 2 * w, c)
