"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): latents on a grid, which is the codebook."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from umd_eqx.core.types import Image, Latent
from umd_eqx.models.tokenizers.base import AbstractTokenizer, Posterior
from umd_eqx.models.tokenizers.vae import Decoder, Encoder, VAEConfig, require_sides

Levels = tuple[int, ...]
Code = Float[Array, "*places channels"]

BOUND_EPS = 1e-3
"""How much wider than its levels the bound is, so that the outermost are reached before infinity (their listing 1)."""


def bounded(z: Code, levels: Levels) -> Code:
    """Numbers squeezed so that rounding gives one of `levels` whole numbers, channel by channel (section 3.1).

    -half .. half for an odd number of levels, half = (L - 1) / 2; -L / 2 .. L / 2 - 1 for an even one.
    """
    count = np.asarray(levels)
    half = (count - 1) * (1 + BOUND_EPS) / 2
    offset = np.where(count % 2 == 0, 0.5, 0.0)
    start = np.arctanh(offset / half)
    return jnp.tanh(z + start.astype(np.float32)) * half.astype(np.float32) - offset.astype(np.float32)


def quantised(z: Code, levels: Levels) -> Code:
    """The code of the encoder's numbers, in about [-1, 1]; gradients go straight through the rounding (section 3.1)."""
    return _straight(bounded(z, levels)) / _width(levels)


def nearest(z: Code, levels: Levels) -> Code:
    """The code nearest to any numbers, such as what a network generates; a code is left as it is."""
    width, count = _width(levels), np.asarray(levels)
    whole = jnp.clip(z * width, (-(count // 2)).astype(np.float32), ((count - 1) // 2).astype(np.float32))
    return _straight(whole) / width


def indices(code: Code, levels: Levels) -> Int[Array, "*places"]:
    """Which of the prod(levels) codes each is: a number written in digits of so many levels, the first the lowest."""
    digits = jnp.round(code * _width(levels)).astype(jnp.int32) + np.asarray(levels) // 2
    return jnp.sum(digits * _bases(levels), axis=-1)


def code_of(index: Int[Array, "*places"], levels: Levels) -> Code:
    """The code of an index, 0 .. prod(levels) - 1: the inverse of `indices`."""
    digits = index[..., None] // _bases(levels) % np.asarray(levels, np.int32)
    return (digits - np.asarray(levels, np.int32) // 2).astype(jnp.float32) / _width(levels)


class FSQ(AbstractTokenizer):
    """Latents that are points of a grid with `levels` values in each channel; prod(levels) codes, none of them learned.

    What a network generates is no code until it is decoded: then the nearest one is taken.
    """

    encoder: Encoder
    decoder: Decoder
    levels: Levels = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    latent_channels: int = eqx.field(static=True)
    factor: int = eqx.field(static=True)
    shift: float = eqx.field(static=True, default=0.0)
    scale: float = eqx.field(static=True, default=1.0)

    @classmethod
    def init(cls, config: VAEConfig, levels: Levels, *, key: PRNGKeyArray) -> "FSQ":
        """Fresh. Of `config` the latent's part is not used: a latent has a channel for each of `levels`.

        Raises `BadInput` as `VAEConfig.validate` does.
        """
        config.validate()
        encoder_key, decoder_key = jax.random.split(key)
        return cls(
            encoder=Encoder.init(config, len(levels), key=encoder_key),
            decoder=Decoder.init(config, len(levels), key=decoder_key),
            levels=levels,
            channels=config.channels,
            latent_channels=len(levels),
            factor=config.factor,
        )

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    def encode_raw(self, image: Image) -> Posterior:
        """The code at each place, for certain. Raises `ValueError` where `factor` does not divide the image's sides."""
        require_sides(image, self.factor)
        return Posterior(quantised(self.encoder(image), self.levels))

    def decode_raw(self, z: Latent) -> Image:
        """The image of the codes nearest to z."""
        return self.decoder(nearest(z, self.levels))

    def indices(self, z: Latent) -> Int[Array, "lh lw"]:
        """Which code lies at each place."""
        return indices(nearest(z, self.levels), self.levels)


def _straight(z: Code) -> Code:
    # Rounded, with the gradient of what is not.
    return z + jax.lax.stop_gradient(jnp.round(z) - z)


def _width(levels: Levels) -> Float[np.ndarray, "channels"]:
    return (np.asarray(levels) // 2).astype(np.float32)


def _bases(levels: Levels) -> Int[np.ndarray, "channels"]:
    return np.cumprod([1, *levels[:-1]]).astype(np.int32)
