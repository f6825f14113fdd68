"""The interface of a path from data to noise."""

import abc

import equinox as eqx
import jax.numpy as jnp

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Image, NetworkTime, Scalar, Time

NETWORK_STEPS = 1000
"""The network time of t = 1. The time embedding of every published network covers steps 0 .. 1000."""

MAX_FINAL_SIGNAL = 0.02
"""The largest permitted alpha / sigma at the final time of a path.

Sampling starts from pure noise, as if alpha were 0 at the final time. Any remaining signal is a mismatch between
training and sampling (Lin et al. 2023, arXiv 2305.08891). For the published paths the ratio is between 0 and 0.0064
(`LinearTable`).
"""


class AbstractPath(eqx.Module):
    """Base class for paths: alpha and sigma over t in [0, 1], and the conversions that follow from them.

    Conversions are exact algebra on x_t = alpha x0 + sigma eps; each documents where it divides by zero.
    """

    @abc.abstractmethod
    def alpha(self, t: Time) -> Scalar:
        """The coefficient of the clean image in x_t, in [0, 1]."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Scalar:
        """The coefficient of the noise in x_t, in [0, 1]."""

    @abc.abstractmethod
    def network_time(self, t: Time) -> NetworkTime:
        """The network time of t, in [0, 1000]."""

    @abc.abstractmethod
    def time_from_uniform(self, u: Scalar) -> Time:
        """Maps u, uniform in [0, 1), to a training time.

        It is 0, the time of a clean image, only on `Clean`, and for u = 0 on a smooth path with `t_min` 0.
        """

    @abc.abstractmethod
    def velocity_weights(self, t: Time) -> tuple[Scalar, Scalar]:
        """The coefficients (a, b) of the path's v = a eps - b x0."""

    @abc.abstractmethod
    def validate(self, field: str = "path") -> None:
        """Raises `BadInput` for invalid hyper-parameters, such as those of a path that does not end in noise.

        `field` is the prefix of their names.
        """

    def interpolate(self, x0: Image, eps: Image, t: Time) -> Image:
        """Returns the noised image x_t."""
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def x0_from_eps(self, x_t: Image, eps: Image, t: Time) -> Image:
        """Returns the clean image, given the noise. Divides by alpha(t)."""
        return (x_t - self.sigma(t) * eps) / self.alpha(t)

    def eps_from_x0(self, x_t: Image, x0: Image, t: Time) -> Image:
        """Returns the noise, given the clean image. Divides by sigma(t)."""
        return (x_t - self.alpha(t) * x0) / self.sigma(t)

    def v_from_x0_eps(self, x0: Image, eps: Image, t: Time) -> Image:
        """Returns the path's v, given the clean image and the noise."""
        a, b = self.velocity_weights(t)
        return a * eps - b * x0

    def x0_eps_from_v(self, x_t: Image, v: Image, t: Time) -> tuple[Image, Image]:
        """Returns the clean image and the noise, given v, from the equations of v and x_t.

        Divides by alpha a + sigma b, which is never 0.
        """
        a, b = self.velocity_weights(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        determinant = alpha * a + sigma * b
        return (a * x_t - sigma * v) / determinant, (b * x_t + alpha * v) / determinant

    def score_from_eps(self, eps: Image, t: Time) -> Image:
        """Returns grad log p(x_t) = -eps / sigma(t) (Song et al. 2021, eq. 7). Divides by sigma(t)."""
        return -eps / self.sigma(t)


class Clean(AbstractPath):
    """A path without noise, for networks that are trained on clean images alone, such as tokenizers."""

    def validate(self, field: str = "path") -> None:
        """Never raises: the path has no hyper-parameters."""

    def alpha(self, t: Time) -> Scalar:
        """Always 1: x_t is the clean image."""
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Scalar:
        """Always 0: x_t is the clean image."""
        return jnp.zeros_like(t)

    def network_time(self, t: Time) -> NetworkTime:
        """Always 0, the network time of clean images."""
        return jnp.zeros_like(t)

    def time_from_uniform(self, u: Scalar) -> Time:
        """Always 0, the time of clean images."""
        return jnp.zeros_like(u)

    def velocity_weights(self, t: Time) -> tuple[Scalar, Scalar]:
        """Always (1, 0), v = eps, by convention: v of this path is never used."""
        return jnp.ones_like(t), jnp.zeros_like(t)


def require_noise(alpha: float, sigma: float, field: str, end: str, hint: str) -> None:
    """Raises `BadInput` naming `field` if alpha / sigma at the end of a path exceeds `MAX_FINAL_SIGNAL`."""
    if not alpha <= MAX_FINAL_SIGNAL * sigma:
        problem = f"the path does not end in noise: after {end} alpha is {alpha:.2g} and sigma {sigma:.2g}"
        raise BadInput(field, problem, hint)
