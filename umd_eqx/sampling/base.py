"""The interface of a sampler."""

import abc

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from umd_eqx.core.errors import BadInput, member
from umd_eqx.core.paths import AbstractDiscretePath, AbstractPath, AbstractSmoothPath
from umd_eqx.core.predictions import Head
from umd_eqx.core.types import AbstractCond, Image, Time
from umd_eqx.models import AbstractModel
from umd_eqx.sampling.denoisers import AbstractDenoiser, Clipped, Ends, ModelDenoiser
from umd_eqx.sampling.fields import require_steps
from umd_eqx.sampling.grids import AbstractGrid, Times
from umd_eqx.sampling.levels import levels

States = Float[Array, "k h w c"]


class AbstractSampler(eqx.Module):
    """A method of sampling an image from noise, with its hyperparameters.

    `sampler(denoiser, noise, key)` returns one image; use `jax.vmap`, or `sample`, for many. Sampling proceeds from the
    first time of a grid to its last, and returns the clean image predicted there.

    The descriptions of the fields below are the help texts of their flags in every sampler that does not give its own.
    """

    head: eqx.AbstractVar[Head]
    """The network output to use: eps (the noise, as published), x0 (the clean image), or v (computed from both)."""
    clip: eqx.AbstractVar[bool]
    """Clip predicted clean images to [-1, 1], as published. Latents are never clipped."""

    @property
    def needs_rates(self) -> bool:
        """Whether the path must be smooth; a table is then replaced by `smooth(path)`. False unless overridden."""
        return False

    @property
    def supports_guidance(self) -> bool:
        """Whether the denoiser may be a guided one. True unless overridden."""
        return True

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values; `field` is the name of the sampler itself, if it has one.

        Accepts everything unless overridden.
        """

    @abc.abstractmethod
    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """Returns an image from standard normal `noise`. `key` is used by samplers that add noise at each step.

        Raises `BadInput` naming `sampler` for a path that the sampler does not support.
        """

    @abc.abstractmethod
    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """Returns the times at which the denoiser is evaluated, from noise to clean, and the noised image at each."""

    @abc.abstractmethod
    def evaluations(self, denoiser: AbstractDenoiser) -> int | None:
        """Returns the number of evaluations of `denoiser` per image, or None if it is determined during sampling.

        A guided denoiser calls its network, or each of its networks, more than once.
        """

    def denoiser(self, model: AbstractModel, path: AbstractPath, cond: AbstractCond | None = None) -> ModelDenoiser:
        """Returns the denoiser of a network along a path, which uses the output `head`."""
        return ModelDenoiser(model, path, cond, head=self.head)

    def clipped(self, denoiser: AbstractDenoiser) -> AbstractDenoiser:
        """Returns the denoiser as this sampler uses it, clipped if `clip` is set."""
        return Clipped(denoiser) if self.clip else denoiser

    def trajectory(
        self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray
    ) -> tuple[Float[Array, "k"], States]:
        """Returns the denoising trajectory: the times of `states`, and the clean image predicted at each of them."""
        times, states = self.states(denoiser, noise, key)
        clipped = self.clipped(denoiser)

        def predict(state: tuple[Time, Image]) -> Image:
            return clipped(state[1], state[0]).x0

        return times, jax.lax.map(predict, (times, states))


class AbstractGridSampler(AbstractSampler):
    """Base class for samplers whose steps lead from each time of a grid to the next."""

    steps: eqx.AbstractVar[int]
    """Number of steps from noise to the image, with one network evaluation each."""
    grid: eqx.AbstractVar[AbstractGrid]
    """Grid of the times at which the network is evaluated."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values."""
        require_steps(self.steps, field)
        self.grid.validate(member(field, "grid"))

    def times(self, path: AbstractPath, side: int, ends: Ends) -> Times:
        """Returns the times of the grid for images of `side` pixels, between the end times of the denoiser."""
        return self.grid.times(path, self.steps, side, ends)

    def evaluations(self, denoiser: AbstractDenoiser) -> int:
        """Returns the number of times of the grid, with one evaluation each."""
        return len(self.times(denoiser.path, denoiser.model.image_shape[0], denoiser.ends))


def initial_state(path: AbstractPath, times: Float64[np.ndarray, "k"], noise: Image) -> Image:
    """Returns the initial state: sigma(t) times the noise at the first time, or the noise itself on a tabulated path.

    The latter is what the reference does.
    """
    if isinstance(path, AbstractDiscretePath):
        return noise
    return noise * jnp.asarray(levels(path, times[:1])[1][0], noise.dtype)


def solve_on_grid(
    terms: diffrax.AbstractTerm, solver: diffrax.AbstractSolver, ts: Float[Array, "n"], x: Image, *, all_states: bool
) -> States:
    """Returns the solution of a differential equation at increasing or decreasing times `ts`, or only at the last.

    The solver takes one step between two times, from the state `x` at the first.
    """
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=ts[0],
        t1=ts[-1],
        dt0=None,
        y0=x,
        saveat=diffrax.SaveAt(ts=ts) if all_states else diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.StepTo(ts=ts),
        adjoint=diffrax.ForwardMode(),
        max_steps=len(ts) - 1,
        throw=False,  # checking would cost as much as a small network
    )
    assert solution.ys is not None
    return solution.ys


def require_smooth(path: AbstractPath, sampler: str) -> AbstractSmoothPath:
    """Returns the path if it is smooth. Raises `BadInput` naming `sampler` for a table, whose derivative is 0."""
    if not isinstance(path, AbstractSmoothPath):
        problem = f"{sampler} requires the rates of the path, and a tabulated path has none"
        raise BadInput("sampler", problem, "Pass umd_eqx.core.paths.smooth(path), or use ddim or dpmpp")
    return path
