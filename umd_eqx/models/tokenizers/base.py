"""What a tokenizer is: the way from images to latents and back, with images themselves as its simplest case."""

import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from umd_eqx.core.types import Image, Latent, Scalar


class Posterior(eqx.Module):
    """What the latent of one image may be: a Gaussian for each of its numbers, or, without `logvar`, one point."""

    mean: Latent
    logvar: Latent | None = None

    def mode(self) -> Latent:
        """The mode of the posterior."""
        return self.mean

    def sample(self, key: PRNGKeyArray) -> Latent:
        """A latent drawn from it."""
        if self.logvar is None:
            return self.mean
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def kl(self) -> Scalar:
        """The divergence from N(0, 1) in nats, summed over the latent (Kingma and Welling 2014, appendix B).

        0 for a point: it has no density that could be compared.
        """
        if self.logvar is None:
            return jnp.zeros((), self.mean.dtype)
        return 0.5 * jnp.sum(self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar)

    def standardised(self, shift: float, scale: float) -> "Posterior":
        """That of (z - shift) * scale, where this one is of z."""
        mean = (self.mean - shift) * scale
        return Posterior(mean, None if self.logvar is None else self.logvar + 2.0 * jnp.log(jnp.abs(scale)))


class AbstractTokenizer(eqx.Module):
    """From images in [-1, 1] to latents and back. One image at a time: use `jax.vmap`.

    What a tokenizer itself calls a latent is z; a network is trained on (z - shift) * scale, which is of about unit
    variance. `channels` and `latent_channels` are those of an image and of its latent; `factor` pixels of a side become
    one of the latent.
    """

    channels: eqx.AbstractVar[int]
    latent_channels: eqx.AbstractVar[int]
    factor: eqx.AbstractVar[int]
    shift: eqx.AbstractVar[float]
    scale: eqx.AbstractVar[float]

    @abc.abstractmethod
    def encode_raw(self, image: Image) -> Posterior:
        """The z of an image whose sides `factor` divides. Raises `ValueError` for others."""

    @abc.abstractmethod
    def decode_raw(self, z: Latent) -> Image:
        """The image of a z, of about [-1, 1]: not clipped."""

    def encode(self, image: Image) -> Posterior:
        """The latent that a network is trained on."""
        return self.encode_raw(image).standardised(self.shift, self.scale)

    def decode(self, latent: Latent) -> Image:
        """The image of such a latent."""
        return self.decode_raw(latent / self.scale + self.shift)


class Identity(AbstractTokenizer):
    """Pixels as they are: every system in pixels is a latent system with this tokenizer."""

    channels: int = eqx.field(static=True)
    latent_channels: int = eqx.field(static=True)
    factor: int = eqx.field(static=True, default=1)
    shift: float = eqx.field(static=True, default=0.0)
    scale: float = eqx.field(static=True, default=1.0)

    @classmethod
    def init(cls, channels: int) -> "Identity":
        """For images of so many channels."""
        return cls(channels, channels)

    def encode_raw(self, image: Image) -> Posterior:
        """The image, for certain."""
        return Posterior(image)

    def decode_raw(self, z: Latent) -> Image:
        """The image."""
        return z


def with_statistics(tokenizer: AbstractTokenizer, shift: float, scale: float) -> AbstractTokenizer:
    """The same weights with another shift and scale."""
    return dataclasses.replace(tokenizer, shift=shift, scale=scale)
