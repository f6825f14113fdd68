"""The interface of tokenizers, which map images to latents and back, and the identity tokenizer for pixels."""

import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from umd_eqx.core.types import Image, Latent, Scalar


class Posterior(eqx.Module):
    """The posterior of one image's latent: a diagonal Gaussian or, without `logvar`, a point mass."""

    mean: Latent
    logvar: Latent | None = None

    def mode(self) -> Latent:
        """Returns the mode of the posterior."""
        return self.mean

    def sample(self, key: PRNGKeyArray) -> Latent:
        """Returns a sample from the posterior."""
        if self.logvar is None:
            return self.mean
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def kl(self) -> Scalar:
        """Returns the KL divergence from N(0, 1) in nats, summed over the latent (Kingma and Welling 2014, appendix B).

        By convention 0 for a point mass, which has no density.
        """
        if self.logvar is None:
            return jnp.zeros((), self.mean.dtype)
        return 0.5 * jnp.sum(self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar)

    def standardised(self, shift: float, scale: float) -> "Posterior":
        """Returns the posterior of (z - shift) * scale, where this is the posterior of z."""
        mean = (self.mean - shift) * scale
        return Posterior(mean, None if self.logvar is None else self.logvar + 2.0 * jnp.log(jnp.abs(scale)))


class AbstractTokenizer(eqx.Module):
    """Base class for tokenizers: images in [-1, 1] to latents and back, one image at a time: use `jax.vmap`.

    z denotes the raw latent of a tokenizer; networks are trained on (z - shift) * scale, which has about unit variance.
    `channels` and `latent_channels` are the channels of an image and of its latent; `factor` is the downsampling factor
    along each side.
    """

    channels: eqx.AbstractVar[int]
    latent_channels: eqx.AbstractVar[int]
    factor: eqx.AbstractVar[int]
    shift: eqx.AbstractVar[float]
    scale: eqx.AbstractVar[float]

    @abc.abstractmethod
    def encode_raw(self, image: Image) -> Posterior:
        """Returns the posterior of z. Raises `ValueError` if `factor` does not divide the sides of the image."""

    @abc.abstractmethod
    def decode_raw(self, z: Latent) -> Image:
        """Returns the image decoded from z, with values of about [-1, 1] that are not clipped."""

    def encode(self, image: Image) -> Posterior:
        """Returns the posterior of the latent that networks are trained on."""
        return self.encode_raw(image).standardised(self.shift, self.scale)

    def decode(self, latent: Latent) -> Image:
        """Returns the image decoded from a latent as returned by `encode`."""
        return self.decode_raw(latent / self.scale + self.shift)


class Identity(AbstractTokenizer):
    """The identity on pixels. Every system in pixels is a latent system with this tokenizer."""

    channels: int = eqx.field(static=True)
    latent_channels: int = eqx.field(static=True)
    factor: int = eqx.field(static=True, default=1)
    shift: float = eqx.field(static=True, default=0.0)
    scale: float = eqx.field(static=True, default=1.0)

    @classmethod
    def init(cls, channels: int) -> "Identity":
        """Returns the tokenizer for images with the given number of channels."""
        return cls(channels, channels)

    def encode_raw(self, image: Image) -> Posterior:
        """Returns a point mass at the image."""
        return Posterior(image)

    def decode_raw(self, z: Latent) -> Image:
        """Returns `z`, which is the image."""
        return z


def with_statistics(tokenizer: AbstractTokenizer, shift: float, scale: float) -> AbstractTokenizer:
    """Returns a tokenizer with the same weights and another shift and scale."""
    return dataclasses.replace(tokenizer, shift=shift, scale=scale)
