"""Paths given by a table of noise levels, as in the reference with its 1000 steps."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths.base import NETWORK_STEPS, AbstractPath, require_noise
from umd_eqx.core.tables import cosine_betas, linear_betas
from umd_eqx.core.types import NetworkTime, Scalar, Time

MOST_STEPS = 1_000_000
"""The largest number of steps of a table."""


class AbstractDiscretePath(AbstractPath):
    """Base class for paths given by a table of `steps` noise levels; step 0 is clean. Times are rounded to a step.

    The derivative of a table look-up is 0, so such a path has no rates. `SmoothTable` is the smooth path through the
    same levels.
    """

    steps: eqx.AbstractVar[int]

    def validate(self, field: str = "path") -> None:
        """Raises `BadInput` for a table that has no steps, too many, or does not end in noise."""
        if self.steps < 1:
            raise BadInput(f"{field}.steps", f"{self.steps} is too small", "Use 3 or more; the paper has 1000")
        if self.steps > MOST_STEPS:
            raise BadInput(f"{field}.steps", f"{self.steps} is too large", f"Use at most {MOST_STEPS:,}")
        abar = float(self.alphas_cumprod()[-1])
        levels = math.sqrt(abar), math.sqrt(1.0 - abar)
        require_noise(*levels, f"{field}.steps", f"{self.steps} steps", "Use 3 or more; the paper has 1000")

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
