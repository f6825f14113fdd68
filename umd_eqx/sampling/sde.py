"""The reverse SDE by Euler-Maruyama."""

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
from umd_eqx.sampling.base import AbstractSampler, States, begin, require_smooth
from umd_eqx.sampling.denoisers import AbstractDenoiser, Ends, end_times
from umd_eqx.sampling.fields import flag, require_steps
from umd_eqx.sampling.grids import AbstractGrid, EDMGrid
from umd_eqx.sampling.levels import levels


class ReverseSDE(AbstractSampler):
    """dx = [alpha' x0 + sigma' eps + (g^2 / 2 sigma) eps] dt + g dw, backwards (Song et al. 2021b, eq. 6).

    g^2 = 2 sigma^2 d log(sigma / alpha) / dt is the forward noise. Steps even in t would be unstable near t = 1, where
    sigma / alpha changes manyfold in one: the grid is EDM's.
    """

    steps: int = eqx.field(static=True, default=64)
    """Steps from noise to the image, one call of the network each."""
    grid: AbstractGrid = eqx.field(default_factory=EDMGrid)
    """Where the steps lie."""
    head: Head = eqx.field(static=True, default="eps")
    """Which output of the network is used: the noise (as published), the clean image, or v, computed from both."""
    clip: bool = eqx.field(static=True, default=True)
    """Clip predicted clean images to [-1, 1] where pixels are sampled, as published. Latents are never clipped."""

    @property
    def needs_rates(self) -> bool:
        """The rates of the path are what it follows."""
        return True

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for numbers that cannot work."""
        require_steps(self.steps, field)
        self.grid.validate(flag(field, "grid"))

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """An image from noise; `key` gives the noise on the way. Raises `BadInput` naming `--sampler` for a table."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        states = self._integrate(denoiser, times, noise, key, all_states=False)
        return self.clipped(denoiser)(states[-1], jnp.asarray(times[-1], noise.dtype)).x0

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """The noised image at each time of the grid."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        return jnp.asarray(times, noise.dtype), self._integrate(denoiser, times, noise, key, all_states=True)

    def evaluations(self, path: AbstractPath) -> int:
        """`steps`, the last call included."""
        return len(self.times(path, 64, end_times(path, self.head)))

    def times(self, path: AbstractPath, side: int, ends: Ends) -> Float64[np.ndarray, "asked"]:
        """Those of the grid at which sigma / alpha is at most EDM's 80: before, g^2 grows without bound."""
        times = self.grid.times(path, self.steps, side, ends)
        alpha, sigma = levels(path, times)
        stable = sigma <= EDMGrid().sigma_max * alpha * (1 + 1e-9)  # but for rounding
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
        asked, x = self.clipped(denoiser), begin(denoiser.path, times, noise)
        if len(times) == 1:
            return x[None]

        # Forward in u = -t, because a Brownian path cannot be followed backwards.
        def drift(u: Any, x: Image, args: Any) -> Image:
            t = jnp.asarray(-u, x.dtype)
            denoised = asked(x, t)
            alpha_rate, sigma_rate = smooth.rates(t)
            ode = alpha_rate * denoised.x0 + sigma_rate * denoised.eps
            return -(ode + _squared_diffusion(smooth, t) / (2.0 * smooth.sigma(t)) * denoised.eps)

        def diffusion(u: Any, x: Image, args: Any) -> lineax.AbstractLinearOperator:
            g = jnp.sqrt(_squared_diffusion(smooth, jnp.asarray(-u, x.dtype)))
            return lineax.DiagonalLinearOperator(jnp.full_like(x, g))

        us = jnp.asarray(-times, x.dtype)
        brownian = diffrax.UnsafeBrownianPath(shape=eqx.filter_eval_shape(lambda: x), key=key)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian)),
            diffrax.Euler(),
            t0=us[0],
            t1=us[-1],
            dt0=None,
            y0=x,
            saveat=diffrax.SaveAt(ts=us) if all_states else diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.StepTo(ts=us),
            adjoint=diffrax.ForwardMode(),
            max_steps=len(times) - 1,
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys


def _squared_diffusion(path: AbstractSmoothPath, t: Time) -> Scalar:
    """g^2 = 2 (sigma sigma' - sigma^2 alpha' / alpha)."""
    (alpha_rate, sigma_rate), alpha, sigma = path.rates(t), path.alpha(t), path.sigma(t)
    return 2.0 * (sigma * sigma_rate - sigma**2 * alpha_rate / alpha)
