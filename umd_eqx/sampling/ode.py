"""The probability-flow ODE dx/dt = alpha'(t) x0 + sigma'(t) eps, from noise to the last time of the path.

This is Song et al. 2021b, eq. 13, in the division-free form of Lipman et al. 2022; x0 and eps are predicted by the
network. One more evaluation removes the noise that remains at the last time: the result is the clean image predicted
there.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from umd_eqx.core.errors import BadInput, member
from umd_eqx.core.predictions import Head
from umd_eqx.core.types import Image
from umd_eqx.sampling.base import (
    AbstractGridSampler,
    AbstractSampler,
    States,
    initial_state,
    require_smooth,
    solve_on_grid,
)
from umd_eqx.sampling.denoisers import AbstractDenoiser
from umd_eqx.sampling.fields import require_steps
from umd_eqx.sampling.grids import AbstractGrid, EDMGrid, UniformGrid

ADAPTIVE_LIMIT = 1000
"""The maximum number of steps of an adaptive solver; an image that requires more is NaN."""


class AbstractFixedStepODE(AbstractGridSampler):
    """Base class for Runge-Kutta methods whose steps are the intervals of a grid.

    - `solver`: the method.
    - `stages`: the number of network evaluations per step.
    """

    solver: ClassVar[diffrax.AbstractSolver]
    stages: ClassVar[int]

    @property
    def needs_rates(self) -> bool:
        """Always True: the sampler integrates along the rates of the path."""
        return True

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """Returns an image from noise; `key` is unused. Raises `BadInput` naming `sampler` for a tabulated path."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        return _last(self.clipped(denoiser), times, self._integrate(denoiser, times, noise, all_states=False))

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """Returns the times of the grid, and the noised image at each of them; `key` is unused."""
        times = self.times(denoiser.path, noise.shape[0], denoiser.ends)
        return jnp.asarray(times, noise.dtype), self._integrate(denoiser, times, noise, all_states=True)

    def evaluations(self, denoiser: AbstractDenoiser) -> int:
        """Returns `stages` (k - 1) + 1 for the k times of the grid: `stages` per interval, and the last evaluation."""
        return self.stages * (super().evaluations(denoiser) - 1) + 1

    def _integrate(
        self, denoiser: AbstractDenoiser, times: Float64[np.ndarray, "n"], noise: Image, *, all_states: bool
    ) -> States:
        """Returns the state at each time, or only the last one."""
        require_smooth(denoiser.path, type(self).__name__.lower())
        x, ts = initial_state(denoiser.path, times, noise), jnp.asarray(times, noise.dtype)
        if len(times) == 1:
            return x[None]
        term = diffrax.ODETerm(flow(self.clipped(denoiser)))
        return solve_on_grid(term, self.solver, ts, x, all_states=all_states)


class Euler(AbstractFixedStepODE):
    """Euler's method in t: first order, with one network evaluation per step."""

    steps: int = eqx.field(static=True, default=32)
    grid: AbstractGrid = eqx.field(default_factory=UniformGrid)
    head: Head = eqx.field(static=True, default="eps")
    clip: bool = eqx.field(static=True, default=True)
    solver: ClassVar[diffrax.AbstractSolver] = diffrax.Euler()
    stages: ClassVar[int] = 1


class Heun(AbstractFixedStepODE):
    """Heun's method in t: second order, with two network evaluations per step.

    This is Karras et al. 2022, algorithm 1, without churn. The default grid is theirs as well: dx/dt has a term
    x / sigma, for which even steps are too long at small sigma.
    """

    steps: int = eqx.field(static=True, default=18)
    """Number of steps from noise to the image, with two network evaluations each."""
    grid: AbstractGrid = eqx.field(default_factory=EDMGrid)
    head: Head = eqx.field(static=True, default="eps")
    clip: bool = eqx.field(static=True, default=True)
    solver: ClassVar[diffrax.AbstractSolver] = diffrax.Heun()
    stages: ClassVar[int] = 2


class Adaptive(AbstractSampler):
    """A fifth-order Runge-Kutta method with adaptive steps, chosen for each image by tolerances."""

    method: Literal["tsit5", "dopri5"] = eqx.field(static=True, default="tsit5")
    """The Runge-Kutta method: that of Tsitouras, or that of Dormand and Prince."""
    rtol: float = eqx.field(static=True, default=1e-3)
    """Relative tolerance of the step size control."""
    atol: float = eqx.field(static=True, default=1e-3)
    """Absolute tolerance of the step size control."""
    steps: int = eqx.field(static=True, default=32)
    """Number of states in a denoising trajectory, even in t. It does not affect the steps of the solver."""
    head: Head = eqx.field(static=True, default="eps")
    clip: bool = eqx.field(static=True, default=True)

    @property
    def needs_rates(self) -> bool:
        """Always True: the sampler integrates along the rates of the path."""
        return True

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values."""
        require_steps(self.steps, field)
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                problem = f"{getattr(self, name)} is outside (0, 1)"
                raise BadInput(member(field, name), problem, "Use a small number such as 1e-3")

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """Returns an image from noise; `key` is unused. Raises `BadInput` naming `sampler` for a tabulated path."""
        times, solution = self._solve(denoiser, noise, diffrax.SaveAt(t1=True))
        assert solution.ys is not None
        image = _last(self.clipped(denoiser), times, solution.ys)
        return jnp.where(solution.result == diffrax.RESULTS.successful, image, jnp.nan)

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """Returns `steps` even times, and the state interpolated at each of them; `key` is unused."""
        low, high = denoiser.ends
        shown = jnp.linspace(high, low, self.steps, dtype=noise.dtype)
        _, solution = self._solve(denoiser, noise, diffrax.SaveAt(ts=shown))
        assert solution.ys is not None
        return shown, solution.ys

    def evaluations(self, denoiser: AbstractDenoiser) -> None:
        """Returns None: the number depends on the image (see `count`)."""
        return None

    def count(self, denoiser: AbstractDenoiser, noise: Image) -> Int[Array, ""]:
        """Returns the number of network evaluations for the image of this noise: six per step, and two more."""
        _, solution = self._solve(denoiser, noise, diffrax.SaveAt(t1=True))
        return 6 * solution.stats["num_steps"] + 2

    def _solve(
        self, denoiser: AbstractDenoiser, noise: Image, saveat: diffrax.SaveAt
    ) -> tuple[Float64[np.ndarray, "2"], diffrax.Solution]:
        require_smooth(denoiser.path, self.method)
        low, high = denoiser.ends
        times = np.array([high, low])
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(flow(self.clipped(denoiser))),
            diffrax.Tsit5() if self.method == "tsit5" else diffrax.Dopri5(),
            t0=high,
            t1=low,
            dt0=None,
            y0=initial_state(denoiser.path, times, noise),
            saveat=saveat,
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            adjoint=diffrax.ForwardMode(),
            max_steps=ADAPTIVE_LIMIT,
            throw=False,
        )
        return times, solution


def flow(denoiser: AbstractDenoiser) -> Callable[[Any, Image, Any], Image]:
    """Returns dx/dt of the probability-flow ODE along a smooth path, as a function of (t, x, args).

    Raises `BadInput` as `require_smooth` does.
    """
    path = require_smooth(denoiser.path, "the flow")

    def field(t: Any, x: Image, args: Any) -> Image:
        t = jnp.asarray(t, x.dtype)
        denoised = denoiser(x, t)
        alpha_rate, sigma_rate = (rate.astype(x.dtype) for rate in path.rates(t))
        return alpha_rate * denoised.x0 + sigma_rate * denoised.eps

    return field


def _last(denoiser: AbstractDenoiser, times: Float64[np.ndarray, "n"], states: States) -> Image:
    return denoiser(states[-1], jnp.asarray(times[-1], states.dtype)).x0
