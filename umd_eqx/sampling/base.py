"""What a sampler is."""

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
    """A way from noise to an image, and its hyper-parameters.

    `sampler(denoiser, noise, key)` is one image; use `jax.vmap`, or `sample` for many. The way goes from the first time
    of a grid to its last, and ends in the clean image as it is predicted there.

    `head` and `clip` say how the prediction of a network is used: `denoiser` makes a denoiser accordingly, and `clip`
    keeps its clean image in [-1, 1].
    """

    head: eqx.AbstractVar[Head]
    clip: eqx.AbstractVar[bool]

    @property
    def needs_rates(self) -> bool:
        """Whether the path must be smooth: a table is then replaced by `smooth(path)`. False unless it says so."""
        return False

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for values that cannot work; `field` is the sampler's own flag, if it has one.

        Nothing is refused unless a sampler says so.
        """

    @abc.abstractmethod
    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """An image from standard normal `noise`. `key` is used by samplers that add noise on the way.

        Raises `BadInput` naming `--sampler` for a path that the sampler cannot follow.
        """

    @abc.abstractmethod
    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """The times on the way at which the denoiser is asked, from noise to clean, and the noised image at each."""

    @abc.abstractmethod
    def evaluations(self, path: AbstractPath) -> int | None:
        """How often the network is asked for one image; None where the sampler decides that on the way."""

    def denoiser(self, model: AbstractModel, path: AbstractPath, cond: AbstractCond | None = None) -> ModelDenoiser:
        """A network along a path, read by `head`."""
        return ModelDenoiser(model, path, cond, head=self.head)

    def clipped(self, denoiser: AbstractDenoiser) -> AbstractDenoiser:
        """The denoiser as this sampler asks it: clipped, if `clip`."""
        return Clipped(denoiser) if self.clip else denoiser

    def trajectory(
        self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray
    ) -> tuple[Float[Array, "k"], States]:
        """The denoising trajectory: the times of `states`, and the clean image as it is predicted at each."""
        times, states = self.states(denoiser, noise, key)
        asked = self.clipped(denoiser)

        def predict(state: tuple[Time, Image]) -> Image:
            return asked(state[1], state[0]).x0

        return times, jax.lax.map(predict, (times, states))


def begin(path: AbstractPath, times: Float64[np.ndarray, "k"], noise: Image) -> Image:
    """Where the way begins: sigma(t) times the noise at the first time; on a table the noise, as in the reference."""
    if isinstance(path, AbstractDiscretePath):
        return noise
    return noise * jnp.asarray(levels(path, times[:1])[1][0], noise.dtype)


def require_smooth(path: AbstractPath, sampler: str) -> AbstractSmoothPath:
    """The path, if it has rates. Raises `BadInput` naming `--sampler` for a table, whose derivative would be 0."""
    if not isinstance(path, AbstractSmoothPath):
        problem = f"{sampler} follows the rates of the path, and a table has none"
        raise BadInput("--sampler", problem, "Pass umd_eqx.core.paths.smooth(path), or take ddim or dpmpp")
    return path
