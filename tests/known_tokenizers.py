"""A tokenizer whose answers are known: it moves the pixels of a square into the channels of one place, and back."""

import equinox as eqx
import jax.numpy as jnp

from umd_eqx.core.types import Image, Latent
from umd_eqx.models.tokenizers.base import AbstractTokenizer, Posterior


class Rearranged(AbstractTokenizer):
    """z is the image with its squares of `factor` x `factor` as channels: nothing is lost, and lengths are kept.

    `logvar` is that of every number, if the latent is no point. `gain` is an array, so that there is something to hash.
    """

    gain: jnp.ndarray
    factor: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    latent_channels: int = eqx.field(static=True)
    shift: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    logvar: float | None = eqx.field(static=True)

    @classmethod
    def init(cls, factor=2, channels=1, shift=0.0, scale=1.0, logvar=None, gain=1.0) -> "Rearranged":
        return cls(jnp.asarray(gain), factor, channels, factor**2 * channels, shift, scale, logvar)

    def encode_raw(self, image: Image) -> Posterior:
        h, w, c = image.shape
        f = self.factor
        squares = image.reshape(h // f, f, w // f, f, c).transpose(0, 2, 1, 3, 4).reshape(h // f, w // f, f * f * c)
        z = self.gain * squares
        return Posterior(z, None if self.logvar is None else jnp.full_like(z, self.logvar))

    def decode_raw(self, z: Latent) -> Image:
        h, w, _ = z.shape
        f, c = self.factor, self.channels
        return (z / self.gain).reshape(h, w, f, f, c).transpose(0, 2, 1, 3, 4).reshape(h * f, w * f, c)
