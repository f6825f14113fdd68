"""The reverse SDE, solved by the Euler-Maruyama method."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from umd_eqx.core.errors import member
from umd_eqx.core.paths import AbstractPath, AbstractSmoothPath
from umd_eqx.core.predictions import Head
from umd_eqx.core.types import Image, Scalar, Time
from umd_eqx.sampling.base import AbstractSampler, States, begin, require_smooth
from umd_eqx.sampling.denoisers import AbstractDenoiser, Ends
from umd_eqx.sampling.fields import require_steps
from umd_eqx.sampling.grids import AbstractGrid, EDMGrid
from umd_eqx.sampling.levels import levels


class ReverseSDE(AbstractSampler):
    """The reverse-time SDE dx = [alpha' x0 + sigma' eps + (g^2 / 2 sigma) eps] dt + g dw (Song et al. 2021b, eq. 6).

    g^2 = 2 sigma^2 d log(sigma / alpha) / dt is the squared diffusion coefficient. The default grid is that of EDM:
    steps even in t would be unstable near t = 1, where sigma / alpha changes by a large factor in one step.
    """

    steps: int = eqx.field(static=True, default=64)
    """Number of steps from noise to the image, with one network evaluation each."""
    grid: AbstractGrid = eqx.field(default_factory=EDMGrid)
    """Grid of the times at which the network is evaluated."""
    head: Head = eqx.field(static=True, default="eps")
    """The network output to use: eps (the noise, as published), x0 (the clean image), or v (computed from both)."""
    clip: bool = eqx.field(static=True, default=True)
    """Clip predicted clean images to [-1, 1], as published. Latents are never clipped."""

    @property
    def needs_rates(self) -> bool:
        """Always True: the sampler integrates along the rates of the path."""
        return True

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values."""
        require_steps(self.steps, field)
        self.grid.validate(member(field, "grid"))

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """Returns an image from noise; `key` gives the noise of the steps. Raises `BadInput` for a tabulated path."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        states = self._integrate(denoiser, times, noise, key, all_states=False)
        return self.clipped(denoiser)(states[-1], jnp.asarray(times[-1], noise.dtype)).x0

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """Returns the times of the grid, and the noised image at each of them."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        return jnp.asarray(times, noise.dtype), self._integrate(denoiser, times, noise, key, all_states=True)

    def evaluations(self, denoiser: AbstractDenoiser) -> int:
        """Returns the number of times of the grid, with one evaluation each."""
        return len(self.times(denoiser.path, denoiser.model.image_shape[0], denoiser.ends))

    def times(self, path: AbstractPath, side: int, ends: Ends) -> Float64[np.ndarray, "n"]:
        """Returns the times of the grid with sigma / alpha at most 80, as in EDM; above, g^2 grows without bound."""
        times = self.grid.times(path, self.steps, side, ends)
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
        clipped, x = self.clipped(denoiser), begin(denoiser.path, times, noise)
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
    """Returns g^2 = 2 (sigma sigma' - sigma^2 alpha' / alpha)."""
    (alpha_rate, sigma_rate), alpha, sigma = path.rates(t), path.alpha(t), path.sigma(t)
    return 2.0 * (sigma * sigma_rate - sigma**2 * alpha_rate / alpha)
