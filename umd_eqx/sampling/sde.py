"""The reverse SDE, solved by the Euler-Maruyama method."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from umd_eqx.core.paths import AbstractPath, AbstractSmoothPath
from umd_eqx.core.predictions import Head
from umd_eqx.core.types import Image, Scalar, Time
from umd_eqx.sampling.base import AbstractGridSampler, States, initial_state, require_smooth, solve_on_grid
from umd_eqx.sampling.denoisers import AbstractDenoiser, Ends
from umd_eqx.sampling.grids import AbstractGrid, EDMGrid, Times
from umd_eqx.sampling.levels import levels


class ReverseSDE(AbstractGridSampler):
    """The reverse-time SDE dx = [alpha' x0 + sigma' eps + (g^2 / 2 sigma) eps] dt + g dw (Song et al. 2021b, eq. 6).

    g^2 = 2 sigma^2 d log(sigma / alpha) / dt is the squared diffusion coefficient. The default grid is that of EDM:
    steps even in t would be unstable near t = 1, where sigma / alpha changes by a large factor in one step.
    """

    steps: int = eqx.field(static=True, default=64)
    grid: AbstractGrid = eqx.field(default_factory=EDMGrid)
    head: Head = eqx.field(static=True, default="eps")
    clip: bool = eqx.field(static=True, default=True)

    @property
    def needs_rates(self) -> bool:
        """Always True: the sampler integrates along the rates of the path."""
        return True

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """Returns an image from noise; `key` gives the noise of the steps. Raises `BadInput` for a tabulated path."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        states = self._integrate(denoiser, times, noise, key, all_states=False)
        return self.clipped(denoiser)(states[-1], jnp.asarray(times[-1], noise.dtype)).x0

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """Returns the times of the grid, and the noised image at each of them."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        return jnp.asarray(times, noise.dtype), self._integrate(denoiser, times, noise, key, all_states=True)

    def times(self, path: AbstractPath, side: int, ends: Ends) -> Times:
        """Returns the times of the grid with sigma / alpha at most 80, as in EDM; above, g^2 grows without bound."""
        times = super().times(path, side, ends)
        alpha, sigma = levels(path, times)
        stable = sigma <= EDMGrid().sigma_max * alpha * (1 + 1e-9)  # tolerance for rounding
        return times[stable] if np.any(stable) else EDMGrid().times(path, 1, side, ends)

    def _integrate(
        self,
        denoiser: AbstractDenoiser,
        times: Float64[np.ndarray, "n"],
        noise: Image,
        key: PRNGKeyArray,
        *,
        all_states: bool,
    ) -> States:
        smooth = require_smooth(denoiser.path, "sde")
        clipped, x = self.clipped(denoiser), initial_state(denoiser.path, times, noise)
        if len(times) == 1:
            return x[None]

        # Integrates forward in u = -t, because a Brownian path cannot be evaluated backwards.
        def drift(u: Any, x: Image, args: Any) -> Image:
            t = jnp.asarray(-u, x.dtype)
            denoised = clipped(x, t)
            alpha_rate, sigma_rate = smooth.rates(t)
            ode = alpha_rate * denoised.x0 + sigma_rate * denoised.eps
            return -(ode + _squared_diffusion(smooth, t) / (2.0 * smooth.sigma(t)) * denoised.eps)

        def diffusion(u: Any, x: Image, args: Any) -> lineax.AbstractLinearOperator:
            g = jnp.sqrt(_squared_diffusion(smooth, jnp.asarray(-u, x.dtype)))
            return lineax.DiagonalLinearOperator(jnp.full_like(x, g))

        us = jnp.asarray(-times, x.dtype)
        brownian = diffrax.UnsafeBrownianPath(shape=eqx.filter_eval_shape(lambda: x), key=key)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian))
        return solve_on_grid(terms, diffrax.Euler(), us, x, all_states=all_states)


def _squared_diffusion(path: AbstractSmoothPath, t: Time) -> Scalar:
    """Returns g^2 = 2 (sigma sigma' - sigma^2 alpha' / alpha)."""
    (alpha_rate, sigma_rate), alpha, sigma = path.rates(t), path.alpha(t), path.sigma(t)
    return 2.0 * (sigma * sigma_rate - sigma**2 * alpha_rate / alpha)
