"""The interface of a sampler."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractDiscretePath, AbstractPath, AbstractSmoothPath
from umd_eqx.core.predictions import Head
from umd_eqx.core.types import AbstractCond, Image, Time
from umd_eqx.models import AbstractModel
from umd_eqx.sampling.denoisers import AbstractDenoiser, Clipped, ModelDenoiser
from umd_eqx.sampling.levels import levels

States = Float[Array, "k h w c"]


class AbstractSampler(eqx.Module):
    """A method of sampling an image from noise, with its hyperparameters.

    `sampler(denoiser, noise, key)` returns one image; use `jax.vmap`, or `sample`, for many. Sampling proceeds from the
    first time of a grid to its last, and returns the clean image predicted there.

    `head` selects the network output that the method `denoiser` uses, and `clip` restricts predicted clean images to
    [-1, 1].
    """

    head: eqx.AbstractVar[Head]
    clip: eqx.AbstractVar[bool]

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


def begin(path: AbstractPath, times: Float64[np.ndarray, "k"], noise: Image) -> Image:
    """Returns the initial state: sigma(t) times the noise at the first time, or the noise itself on a tabulated path.

    The latter is what the reference does.
    """
    if isinstance(path, AbstractDiscretePath):
        return noise
    return noise * jnp.asarray(levels(path, times[:1])[1][0], noise.dtype)


def require_smooth(path: AbstractPath, sampler: str) -> AbstractSmoothPath:
    """Returns the path if it is smooth. Raises `BadInput` naming `sampler` for a table, whose derivative is 0."""
    if not isinstance(path, AbstractSmoothPath):
        problem = f"{sampler} requires the rates of the path, and a tabulated path has none"
        raise BadInput("sampler", problem, "Pass umd_eqx.core.paths.smooth(path), or use ddim or dpmpp")
    return path
