"""The auto-encoder of Stable Diffusion: images to Gaussian latents and back (Rombach et al. 2022, section 3.1)."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Image, Latent
from umd_eqx.models.tokenizers.base import AbstractTokenizer, Posterior
from umd_eqx.models.tokenizers.vae_layers import Conv, GroupNorm, Level, MidBlock

LOGVAR_RANGE = (-30.0, 20.0)
"""The range to which the published network clips the logarithm of the variance."""


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The sizes of a convolutional auto-encoder. The published ones are `SD_V1`, `SD_V3` and `FLUX`."""

    channels: int = 3
    """Number of image channels."""
    latent_channels: int = 4
    """Number of latent channels."""
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each resolution (`block_out_channels`); each but the last is followed by downsampling by 2."""
    layers: int = 2
    """Number of residual blocks per resolution in the encoder (`layers_per_block`); the decoder has one more."""
    groups: int = 32
    """Number of groups in each group normalisation (`norm_num_groups`)."""
    attention: bool = True
    """Whether to use attention at the lowest resolution (`mid_block_add_attention`)."""
    quant_conv: bool = True
    """Whether a 1 x 1 convolution follows the encoder (`use_quant_conv`)."""
    post_quant_conv: bool = True
    """Whether a 1 x 1 convolution precedes the decoder (`use_post_quant_conv`)."""
    shift: float = 0.0
    """The shift that is subtracted from z before a network is trained on it (`shift_factor`)."""
    scale: float = 0.18215
    """The factor applied after the shift (`scaling_factor`), about one over the standard deviation of z."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the computation. Parameters, moments and images are float32."""

    @property
    def factor(self) -> int:
        """The downsampling factor along each side."""
        return 2 ** (len(self.widths) - 1)

    def validate(self, field: str = "model") -> None:
        """Raises `BadInput` for invalid sizes."""
        if not self.widths:
            raise BadInput(f"{field}.widths", "no widths are given", "Give the channels at each resolution")
        if self.groups < 1 or any(width < 1 or width % self.groups for width in self.widths):
            problem = f"{self.groups} groups do not divide the widths {', '.join(map(str, self.widths))}"
            raise BadInput(f"{field}.groups", problem, "Use a number that divides each of them")
        for name in ("channels", "latent_channels", "layers"):
            if getattr(self, name) < 1:
                subject = f"{field}.{name}"
                raise BadInput(subject, f"{getattr(self, name)} is too small", "Use 1 or more")


SD_V1 = VAEConfig()
"""Stable Diffusion 1 and 2: sd-vae-ft-mse, sd-vae-ft-ema. 84 million parameters, 8 x 8 pixels to 4 values."""
SD_V3 = VAEConfig(latent_channels=16, quant_conv=False, post_quant_conv=False, shift=0.0609, scale=1.5305)
"""Stable Diffusion 3: 8 x 8 pixels to 16 values."""
FLUX = dataclasses.replace(SD_V3, shift=0.1159, scale=0.3611)
"""FLUX.1: the same network with other weights."""


class Encoder(eqx.Module):
    """Maps an image to `outputs` values at each position of the latent."""

    first: Conv
    levels: tuple[Level, ...]
    middle: MidBlock
    norm: GroupNorm
    last: Conv

    @classmethod
    def init(cls, config: VAEConfig, outputs: int, *, key: PRNGKeyArray) -> "Encoder":
        """Returns a freshly initialised encoder."""
        widths, groups, number = config.widths, config.groups, len(config.widths)
        keys = jax.random.split(key, number + 3)
        levels = [
            Level.init(before, width, groups, config.layers, up=False, resample=i < number - 1, key=keys[i])
            for i, (before, width) in enumerate(zip(widths[:1] + widths, widths, strict=False))
        ]
        return cls(
            first=Conv.init(config.channels, widths[0], key=keys[-3]),
            levels=tuple(levels),
            middle=MidBlock.init(widths[-1], groups, attention=config.attention, key=keys[-2]),
            norm=GroupNorm.init(widths[-1], groups),
            last=Conv.init(widths[-1], outputs, key=keys[-1]),
        )

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "lh lw outputs"]:
        """Encodes one image."""
        x = self.first(x)
        for level in self.levels:
            x = level(x)
        return self.last(jax.nn.silu(self.norm(self.middle(x))))


class Decoder(eqx.Module):
    """Maps `inputs` values at each position of the latent to an image."""

    first: Conv
    middle: MidBlock
    levels: tuple[Level, ...]
    norm: GroupNorm
    last: Conv

    @classmethod
    def init(cls, config: VAEConfig, inputs: int, *, key: PRNGKeyArray) -> "Decoder":
        """Returns a freshly initialised decoder. Its levels are ordered from the lowest resolution to the highest."""
        widths, groups, number = config.widths[::-1], config.groups, len(config.widths)
        keys = jax.random.split(key, number + 3)
        levels = [
            Level.init(before, width, groups, config.layers + 1, up=True, resample=i < number - 1, key=keys[i])
            for i, (before, width) in enumerate(zip(widths[:1] + widths, widths, strict=False))
        ]
        return cls(
            first=Conv.init(inputs, widths[0], key=keys[-3]),
            middle=MidBlock.init(widths[0], groups, attention=config.attention, key=keys[-2]),
            levels=tuple(levels),
            norm=GroupNorm.init(widths[-1], groups),
            last=Conv.init(widths[-1], config.channels, key=keys[-1]),
        )

    def __call__(self, z: Float[Array, "lh lw inputs"]) -> Float[Array, "h w c"]:
        """Decodes one latent."""
        x = self.middle(self.first(z))
        for level in self.levels:
            x = level(x)
        return self.last(jax.nn.silu(self.norm(x)))


class AutoencoderKL(AbstractTokenizer):
    """A tokenizer with Gaussian latents: the encoder predicts their mean and the logarithm of their variance."""

    encoder: Encoder
    quant_conv: Conv | None
    post_quant_conv: Conv | None
    decoder: Decoder
    channels: int = eqx.field(static=True)
    latent_channels: int = eqx.field(static=True)
    factor: int = eqx.field(static=True)
    shift: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    @classmethod
    def init(cls, config: VAEConfig, *, key: PRNGKeyArray) -> "AutoencoderKL":
        """Returns a freshly initialised tokenizer. Raises `BadInput` as `VAEConfig.validate` does."""
        config.validate()
        keys, c = jax.random.split(key, 4), config.latent_channels
        return cls(
            encoder=Encoder.init(config, 2 * c, key=keys[0]),
            quant_conv=Conv.init(2 * c, 2 * c, key=keys[1], side=1) if config.quant_conv else None,
            post_quant_conv=Conv.init(c, c, key=keys[2], side=1) if config.post_quant_conv else None,
            decoder=Decoder.init(config, c, key=keys[3]),
            channels=config.channels,
            latent_channels=c,
            factor=config.factor,
            shift=config.shift,
            scale=config.scale,
            dtype=config.dtype,
        )

    def encode_raw(self, image: Image) -> Posterior:
        """Returns the posterior of z. Raises `ValueError` if `factor` does not divide the sides of the image."""
        require_sides(image, self.factor)
        moments = self.encoder(image.astype(self.dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def decode_raw(self, z: Latent) -> Image:
        """Returns the image decoded from z."""
        z = z.astype(self.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)


def require_sides(image: Image, factor: int) -> None:
    """Raises `ValueError` if `factor` does not divide the sides of an image."""
    if image.shape[0] % factor or image.shape[1] % factor:
        raise ValueError(f"the sides of an image of {image.shape[0]} x {image.shape[1]} are not divisible by {factor}")
