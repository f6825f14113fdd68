"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): latents on a grid, which acts as the codebook."""

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
"""The relative margin of the bound, with which the outermost levels are reached for finite inputs (their listing 1)."""


def bounded(z: Code, levels: Levels) -> Code:
    """Bounds each channel to a range in which rounding gives one of `levels` integers (section 3.1).

    These are -half .. half for an odd number L of levels, half = (L - 1) / 2, and -L / 2 .. L / 2 - 1 for an even one.
    """
    count = np.asarray(levels)
    half = (count - 1) * (1 + BOUND_EPS) / 2
    offset = np.where(count % 2 == 0, 0.5, 0.0)
    start = np.arctanh(offset / half)
    return jnp.tanh(z + start.astype(np.float32)) * half.astype(np.float32) - offset.astype(np.float32)


def quantised(z: Code, levels: Levels) -> Code:
    """Quantises the encoder's output to codes in about [-1, 1], with a straight-through gradient (section 3.1)."""
    return _straight_through(bounded(z, levels)) / _width(levels)


def nearest(z: Code, levels: Levels) -> Code:
    """Returns the code nearest to arbitrary values, such as the output of a network; codes are unchanged."""
    width, count = _width(levels), np.asarray(levels)
    whole = jnp.clip(z * width, (-(count // 2)).astype(np.float32), ((count - 1) // 2).astype(np.float32))
    return _straight_through(whole) / width


def indices(code: Code, levels: Levels) -> Int[Array, "*places"]:
    """Returns the index of each code among prod(levels), in a mixed radix with the first channel as lowest digit."""
    digits = jnp.round(code * _width(levels)).astype(jnp.int32) + np.asarray(levels) // 2
    return jnp.sum(digits * _bases(levels), axis=-1)


def code_of(index: Int[Array, "*places"], levels: Levels) -> Code:
    """Returns the code of an index, 0 .. prod(levels) - 1: the inverse of `indices`."""
    digits = index[..., None] // _bases(levels) % np.asarray(levels, np.int32)
    return (digits - np.asarray(levels, np.int32) // 2).astype(jnp.float32) / _width(levels)


class FSQ(AbstractTokenizer):
    """A tokenizer with latents on a grid of `levels` values per channel, a fixed codebook of prod(levels) codes.

    The outputs of a generative network are not codes; `decode_raw` rounds them to the nearest one.
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
        """Returns a freshly initialised tokenizer. Raises `BadInput` as `VAEConfig.validate` does.

        The latent settings of `config` are not used: a latent has one channel for each of `levels`.
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
        """The number of codes."""
        return math.prod(self.levels)

    def encode_raw(self, image: Image) -> Posterior:
        """Returns a point mass at the codes. Raises `ValueError` if `factor` does not divide the sides of the image."""
        require_sides(image, self.factor)
        return Posterior(quantised(self.encoder(image), self.levels))

    def decode_raw(self, z: Latent) -> Image:
        """Returns the image decoded from the codes nearest to z."""
        return self.decoder(nearest(z, self.levels))

    def indices(self, z: Latent) -> Int[Array, "lh lw"]:
        """Returns the index of the code at each position."""
        return indices(nearest(z, self.levels), self.levels)


def _straight_through(z: Code) -> Code:
    # Rounds with the gradient of the identity (straight-through).
    return z + jax.lax.stop_gradient(jnp.round(z) - z)


def _width(levels: Levels) -> Float[np.ndarray, "channels"]:
    return (np.asarray(levels) // 2).astype(np.float32)


def _bases(levels: Levels) -> Int[np.ndarray, "channels"]:
    return np.cumprod([1, *levels[:-1]]).astype(np.int32)
