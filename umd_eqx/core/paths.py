"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 clean and t = 1 noise.

A discrete path is a table of noise levels, as in the reference with its 1000 steps: diffusion index i (0 .. 999) is the
time (i + 1) / 1000, and the reference's "step 0, no noise" is t = 0. A smooth path is a differentiable formula, which
ODE and SDE solvers require. A path holds hyper-parameters only and is therefore its own configuration.
"""

import abc
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from umd_eqx.core.errors import BadInput
from umd_eqx.core.tables import cosine_betas, linear_betas
from umd_eqx.core.types import Image, NetworkTime, Scalar, Time

NETWORK_STEPS = 1000
"""The network time of t = 1. The time embedding of every published network covers steps 0 .. 1000."""

LARGEST_FINAL_SIGNAL = 0.02
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


class AbstractDiscretePath(AbstractPath):
    """Base class for paths given by a table of `steps` noise levels; step 0 is clean. Times are rounded to a step.

    The derivative of a table look-up is 0, so such a path has no rates. `SmoothTable` is the smooth path through the
    same levels.
    """

    steps: eqx.AbstractVar[int]

    def validate(self, field: str = "path") -> None:
        """Raises `BadInput` for a table that has no steps or does not end in noise."""
        if self.steps < 1:
            raise BadInput(f"{field}.steps", f"{self.steps} is too small", "Use 3 or more; the paper has 1000")
        abar = float(self.alphas_cumprod()[-1])
        levels = math.sqrt(abar), math.sqrt(1.0 - abar)
        _require_noise(*levels, f"{field}.steps", f"{self.steps} steps", "Use 3 or more; the paper has 1000")

    @abc.abstractmethod
    def alphas_cumprod(self) -> Float64[np.ndarray, "steps"]:
        """Returns abar, the product of (1 - beta) up to each step, in float64."""

    def _level(self, t: Time, values: np.ndarray) -> Scalar:
        # Rounded, not floored: in float32, 1000 * ((i + 1) / 1000) is less than i + 1 for some i.
        return jnp.asarray(values, jnp.float32)[jnp.round(t * self.steps).astype(jnp.int32)]

    def alpha(self, t: Time) -> Scalar:
        """sqrt(abar), and 1 at t = 0."""
        return self._level(t, np.sqrt(np.concatenate([[1.0], self.alphas_cumprod()])))

    def sigma(self, t: Time) -> Scalar:
        """sqrt(1 - abar), and 0 at t = 0."""
        return self._level(t, np.sqrt(1.0 - np.concatenate([[1.0], self.alphas_cumprod()])))

    def network_time(self, t: Time) -> NetworkTime:
        """The index of the step, scaled to 1000 steps: the reference passes diffusion index i as i + 1."""
        return jnp.round(t * self.steps) * (NETWORK_STEPS / self.steps)

    def time_from_uniform(self, u: Scalar) -> Time:
        """The time of diffusion index floor(u T), with T = `steps`."""
        return (jnp.minimum(jnp.floor(u * self.steps), self.steps - 1) + 1.0) / self.steps

    def velocity_weights(self, t: Time) -> tuple[Scalar, Scalar]:
        """v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D)."""
        return self.alpha(t), self.sigma(t)


class CosineTable(AbstractDiscretePath):
    """The reference's path for pixels: the clipped cosine betas of Nichol and Dhariwal 2021, eq. 17."""

    steps: int = eqx.field(static=True, default=1000)
    """Number of noise levels in the table, as published 1000."""

    def alphas_cumprod(self) -> Float64[np.ndarray, "steps"]:
        """Returns abar of `cosine_betas`."""
        return np.cumprod(1.0 - cosine_betas(self.steps))


class LinearTable(AbstractDiscretePath):
    """The reference's path for latents: betas from 1e-4 to 0.02 (Ho et al. 2020, section 4)."""

    steps: int = eqx.field(static=True, default=1000)
    """Number of noise levels in the table, as published 1000."""

    def alphas_cumprod(self) -> Float64[np.ndarray, "steps"]:
        """Returns abar of `linear_betas`."""
        return np.cumprod(1.0 - linear_betas(self.steps))


class AbstractSmoothPath(AbstractPath):
    """Base class for differentiable paths, without a singularity on [t_min, t_max]."""

    t_min: eqx.AbstractVar[float]
    t_max: eqx.AbstractVar[float]

    def validate(self, field: str = "path") -> None:
        """Raises `BadInput` unless 0 <= t_min < t_max <= 1, and for a path that does not end in noise."""
        if not 0 <= self.t_min < self.t_max <= 1:
            problem = f"{self.t_min} .. {self.t_max} is not an interval within [0, 1]"
            raise BadInput(f"{field}.t_min", problem, "Give 0 <= t_min < t_max <= 1")
        # Compiled ahead of time, so that these are concrete values even if `validate` runs while a program is traced.
        levels = jax.jit(lambda t: (self.alpha(t), self.sigma(t)))
        compiled = levels.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
        alpha, sigma = (float(level) for level in compiled(np.float32(self.t_max)))
        _require_noise(alpha, sigma, f"{field}.t_max", f"t = {self.t_max:g}", "Use a time nearer to 1")

    def log_snr(self, t: Time) -> Scalar:
        """Returns log(alpha^2 / sigma^2), which is infinite where sigma or alpha is 0."""
        return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def rates(self, t: Time) -> tuple[Scalar, Scalar]:
        """Returns (d alpha / dt, d sigma / dt), by forward-mode differentiation."""
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]

    def network_time(self, t: Time) -> NetworkTime:
        """1000 t, not rounded."""
        return NETWORK_STEPS * t

    def time_from_uniform(self, u: Scalar) -> Time:
        """A time that is uniform between `t_min`, the time of u = 0, and `t_max`."""
        return self.t_min + (self.t_max - self.t_min) * u


class CosinePath(AbstractSmoothPath):
    """The cosine path alpha = cos(pi t / 2), sigma = sin(pi t / 2), a smooth analogue of the reference's pixel path."""

    t_min: float = eqx.field(static=True, default=1e-3)
    """Smallest time that is drawn in training. Sampling ends there, or just above 0."""
    t_max: float = eqx.field(static=True, default=0.999)
    """Largest time that is drawn in training: the image is noise. Sampling begins there, or just below 1."""

    def alpha(self, t: Time) -> Scalar:
        """cos(pi t / 2), written as a sine so that it is exactly 0 at t = 1 and not -4e-8."""
        return jnp.sin((1.0 - t) * (math.pi / 2))

    def sigma(self, t: Time) -> Scalar:
        """sin(pi t / 2)."""
        return jnp.sin(t * (math.pi / 2))

    def velocity_weights(self, t: Time) -> tuple[Scalar, Scalar]:
        """v = alpha eps - sigma x0, which is dx/dt up to the factor pi/2."""
        return self.alpha(t), self.sigma(t)


class RectifiedFlow(AbstractSmoothPath):
    """The straight path alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman et al. 2022)."""

    t_min: float = eqx.field(static=True, default=1e-3)
    """Smallest time that is drawn in training. Sampling ends there, or just above 0."""
    t_max: float = eqx.field(static=True, default=1.0)
    """Largest time that is drawn in training: the image is noise. Sampling begins there, or just below 1."""

    def alpha(self, t: Time) -> Scalar:
        """1 - t."""
        return 1.0 - t

    def sigma(self, t: Time) -> Scalar:
        """t."""
        return 1.0 * t

    def velocity_weights(self, t: Time) -> tuple[Scalar, Scalar]:
        """v = dx/dt = eps - x0."""
        return jnp.ones_like(t), jnp.ones_like(t)


class SmoothTable(AbstractSmoothPath):
    """The smooth path through every level of a discrete path, by cubic Hermite interpolation of its log-SNR.

    The path is variance preserving. Its end times are the table's first and last step (set by `smooth`).
    """

    table: AbstractDiscretePath = CosineTable()
    """The table whose noise levels the path interpolates."""
    t_min: float = eqx.field(static=True, default=1e-3)
    """Smallest time that is drawn in training. Sampling ends there, or just above 0."""
    t_max: float = eqx.field(static=True, default=1.0)
    """Largest time that is drawn in training: the image is noise. Sampling begins there, or just below 1."""

    def validate(self, field: str = "path") -> None:
        """Raises `BadInput` as its table and every smooth path do.

        A valid table has at least the two levels that the interpolation needs.
        """
        self.table.validate(f"{field}.table")
        super().validate(field)

    def log_snr(self, t: Time) -> Scalar:
        """Returns the interpolated log-SNR, extrapolated by the outermost polynomials beyond the table."""
        abar = self.table.alphas_cumprod()
        nodes = np.arange(1, self.table.steps + 1) / self.table.steps
        levels = np.log(abar) - np.log1p(-abar)
        dtype = jnp.result_type(t)
        d, c, b, a = diffrax.backward_hermite_coefficients(jnp.asarray(nodes), jnp.asarray(levels))
        pieces = (d.astype(dtype), c.astype(dtype), b.astype(dtype), a.astype(dtype))
        curve = diffrax.CubicInterpolation(jnp.asarray(nodes, dtype), pieces)
        return curve.evaluate(t)

    def alpha(self, t: Time) -> Scalar:
        """sqrt(sigmoid(log-SNR))."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self.log_snr(t)))

    def sigma(self, t: Time) -> Scalar:
        """sqrt(sigmoid(-log-SNR))."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self.log_snr(t)))

    def velocity_weights(self, t: Time) -> tuple[Scalar, Scalar]:
        """v = alpha eps - sigma x0."""
        return self.alpha(t), self.sigma(t)


def smooth(path: AbstractDiscretePath) -> SmoothTable:
    """Returns the smooth path through a table, for solvers that need rates."""
    return SmoothTable(table=path, t_min=1.0 / path.steps, t_max=1.0)


def _require_noise(alpha: float, sigma: float, field: str, end: str, hint: str) -> None:
    """Raises `BadInput` naming `field` if alpha / sigma at the end of a path exceeds `LARGEST_FINAL_SIGNAL`."""
    if not alpha <= LARGEST_FINAL_SIGNAL * sigma:
        problem = f"the path does not end in noise: after {end} alpha is {alpha:.2g} and sigma {sigma:.2g}"
        raise BadInput(field, problem, hint)
