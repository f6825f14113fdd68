"""The probability-flow ODE dx/dt = alpha'(t) x0 + sigma'(t) eps, from noise to the last time of the path.

Song et al. 2021b, eq. 13, in the form of Lipman et al. 2022 that needs no division: x0 and eps are what the network
predicts. What is left at the last time is taken away by one more call: the image is the clean image as predicted there.
"""

from collections.abc import Callable
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.predictions import Head
from umd_eqx.core.types import Image
from umd_eqx.sampling.base import AbstractSampler, States, begin, require_smooth
from umd_eqx.sampling.denoisers import AbstractDenoiser, end_times
from umd_eqx.sampling.fields import flag, require_steps
from umd_eqx.sampling.grids import AbstractGrid, EDMGrid, UniformGrid

ADAPTIVE_LIMIT = 1000
"""Steps after which an adaptive solver gives up: its image is NaN."""


class Euler(AbstractSampler):
    """Euler's method in t: first order, one call of the network a step."""

    steps: int = eqx.field(static=True, default=32)
    """Steps from noise to the image, one call of the network each."""
    grid: AbstractGrid = eqx.field(default_factory=UniformGrid)
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
        """An image from noise; `key` is not used. Raises `BadInput` naming `--sampler` for a table."""
        times = self.grid.times(denoiser.path, self.steps, noise.shape[0], denoiser.ends)
        states = _integrate(self, diffrax.Euler(), denoiser, times, noise, all_states=False)
        return _last(self.clipped(denoiser), times, states)

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """The noised image at each time of the grid; `key` is not used."""
        times = self.grid.times(denoiser.path, self.steps, noise.shape[0], denoiser.ends)
        states = _integrate(self, diffrax.Euler(), denoiser, times, noise, all_states=True)
        return jnp.asarray(times, noise.dtype), states

    def evaluations(self, path: AbstractPath) -> int:
        """`steps`, the last call included."""
        return len(self.grid.times(path, self.steps, 64, end_times(path, self.head)))


class Heun(AbstractSampler):
    """Heun's method in t (Karras et al. 2022, algorithm 1, without its churn): second order, two calls a step.

    Its grid is theirs, too: dx/dt has a part x / sigma, and where sigma is small even steps are too long for it.
    """

    steps: int = eqx.field(static=True, default=18)
    """Steps from noise to the image, two calls of the network each."""
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
        """An image from noise; `key` is not used. Raises `BadInput` naming `--sampler` for a table."""
        times = self.grid.times(denoiser.path, self.steps, noise.shape[0], denoiser.ends)
        states = _integrate(self, diffrax.Heun(), denoiser, times, noise, all_states=False)
        return _last(self.clipped(denoiser), times, states)

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """The noised image at each time of the grid; `key` is not used."""
        times = self.grid.times(denoiser.path, self.steps, noise.shape[0], denoiser.ends)
        states = _integrate(self, diffrax.Heun(), denoiser, times, noise, all_states=True)
        return jnp.asarray(times, noise.dtype), states

    def evaluations(self, path: AbstractPath) -> int:
        """2 `steps` - 1: two for each of the steps between so many times, and the last call."""
        return 2 * len(self.grid.times(path, self.steps, 64, end_times(path, self.head))) - 1


class Adaptive(AbstractSampler):
    """A Runge-Kutta method of fifth order that chooses its steps by a tolerance, for each image alone."""

    method: Literal["tsit5", "dopri5"] = eqx.field(static=True, default="tsit5")
    """Tsitouras's method or Dormand and Prince's."""
    rtol: float = eqx.field(static=True, default=1e-3)
    """Relative tolerance."""
    atol: float = eqx.field(static=True, default=1e-3)
    """Absolute tolerance."""
    steps: int = eqx.field(static=True, default=32)
    """How many states a trajectory shows, evenly in t. The solver chooses its own steps."""
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
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                problem = f"{getattr(self, name)} is outside (0, 1)"
                raise BadInput(flag(field, name), problem, "Use a small number such as 1e-3")

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """An image from noise; `key` is not used. Raises `BadInput` naming `--sampler` for a table."""
        times, solution = self._solve(denoiser, noise, diffrax.SaveAt(t1=True))
        assert solution.ys is not None
        image = _last(self.clipped(denoiser), times, solution.ys)
        return jnp.where(solution.result == diffrax.RESULTS.successful, image, jnp.nan)

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """`steps` states evenly in t, interpolated; `key` is not used."""
        low, high = denoiser.ends
        shown = jnp.linspace(high, low, self.steps, dtype=noise.dtype)
        _, solution = self._solve(denoiser, noise, diffrax.SaveAt(ts=shown))
        assert solution.ys is not None
        return shown, solution.ys

    def evaluations(self, path: AbstractPath) -> None:
        """Not known before: see `count`."""
        return None

    def count(self, denoiser: AbstractDenoiser, noise: Image) -> Int[Array, ""]:
        """How often the network is asked for the image that comes of this noise: six times a step, and twice more."""
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
            y0=begin(denoiser.path, times, noise),
            saveat=saveat,
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            adjoint=diffrax.ForwardMode(),
            max_steps=ADAPTIVE_LIMIT,
            throw=False,
        )
        return times, solution


def flow(denoiser: AbstractDenoiser) -> Callable[[Any, Image, Any], Image]:
    """dx/dt of the probability-flow ODE, a function of (t, x, args), along a smooth path.

    Raises `BadInput` as `require_smooth` does.
    """
    path = require_smooth(denoiser.path, "the flow")

    def field(t: Any, x: Image, args: Any) -> Image:
        t = jnp.asarray(t, x.dtype)
        denoised = denoiser(x, t)
        alpha_rate, sigma_rate = path.rates(t)
        return alpha_rate * denoised.x0 + sigma_rate * denoised.eps

    return field


def _integrate(
    sampler: AbstractSampler,
    solver: diffrax.AbstractSolver,
    denoiser: AbstractDenoiser,
    times: Float64[np.ndarray, "n"],
    noise: Image,
    *,
    all_states: bool,
) -> States:
    """The states at the times, or the last alone."""
    require_smooth(denoiser.path, type(sampler).__name__.lower())
    x, ts = begin(denoiser.path, times, noise), jnp.asarray(times, noise.dtype)
    if len(times) == 1:
        return x[None]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(flow(sampler.clipped(denoiser))),
        solver,
        t0=ts[0],
        t1=ts[-1],
        dt0=None,
        y0=x,
        saveat=diffrax.SaveAt(ts=ts) if all_states else diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.StepTo(ts=ts),
        adjoint=diffrax.ForwardMode(),
        max_steps=len(times) - 1,
        throw=False,  # checking would cost as much as a small network
    )
    assert solution.ys is not None
    return solution.ys


def _last(denoiser: AbstractDenoiser, times: Float64[np.ndarray, "n"], states: States) -> Image:
    return denoiser(states[-1], jnp.asarray(times[-1], states.dtype)).x0
