"""Paths given by differentiable formulas, which ODE and SDE solvers require."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths.base import NETWORK_STEPS, AbstractPath, require_noise
from umd_eqx.core.paths.discrete import AbstractDiscretePath, CosineTable
from umd_eqx.core.types import NetworkTime, Scalar, Time


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
        require_noise(alpha, sigma, f"{field}.t_max", f"t = {self.t_max:g}", "Use a time nearer to 1")

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
        """Returns 1 - t, the scale of the image."""
        return 1.0 - t

    def sigma(self, t: Time) -> Scalar:
        """Returns t, the scale of the noise."""
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
        """Returns sqrt(sigmoid(log-SNR)), the scale of the image on a variance-preserving path."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self.log_snr(t)))

    def sigma(self, t: Time) -> Scalar:
        """Returns sqrt(sigmoid(-log-SNR)), the scale of the noise: alpha^2 + sigma^2 = 1."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self.log_snr(t)))

    def velocity_weights(self, t: Time) -> tuple[Scalar, Scalar]:
        """v = alpha eps - sigma x0."""
        return self.alpha(t), self.sigma(t)


def smooth(path: AbstractDiscretePath) -> SmoothTable:
    """Returns the smooth path through a table, for solvers that need rates."""
    return SmoothTable(table=path, t_min=1.0 / path.steps, t_max=1.0)
