"""Sampling by average velocities: one call of the network, or a few."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.predictions import Head
from umd_eqx.core.types import Image
from umd_eqx.sampling.base import AbstractSampler, States
from umd_eqx.sampling.denoisers import AbstractDenoiser, ModelDenoiser
from umd_eqx.sampling.fields import require_steps


class MeanFlowSampler(AbstractSampler):
    """x_r = x_t - (t - r) u(x_t, r, t) over even intervals from t = 1 to 0 (Geng et al. 2025, algorithm 2).

    With one step, x0 = eps - u(eps, 0, 1). It asks a network for average velocities, which no guidance has: the
    denoiser is that of a network trained with `umd_eqx.objectives.MeanFlow`.
    """

    steps: int = eqx.field(static=True, default=1)
    """Steps; the network is asked once in each."""
    head: Head = eqx.field(static=True, default="v")
    """Not used: the network has one output."""
    clip: bool = eqx.field(static=True, default=True)
    """Clip the image to [-1, 1] where pixels are sampled. Latents are never clipped."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for fewer steps than one."""
        require_steps(self.steps, field)

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """An image from noise; `key` is not used. Raises `BadInput` naming `--sampler` for any other denoiser."""
        image = self._solve(denoiser, noise)[1]
        return jnp.clip(image, -1.0, 1.0) if self.clip else image

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """The noised image at the beginning of each interval; `key` is not used."""
        return self._times(noise)[:-1], self._solve(denoiser, noise)[0]

    def evaluations(self, path: AbstractPath) -> int:
        """One in each step."""
        return self.steps

    def _times(self, noise: Image) -> Float[Array, "k"]:
        return jnp.linspace(1.0, 0.0, self.steps + 1, dtype=noise.dtype)

    def _solve(self, denoiser: AbstractDenoiser, noise: Image) -> tuple[States, Image]:
        if not isinstance(denoiser, ModelDenoiser):
            problem = f"{type(denoiser).__name__} has no average velocities"
            raise BadInput("--sampler", problem, "Use --cfg-scale 1, or another sampler")
        times = self._times(noise)

        def step(x: Image, interval: tuple[Array, Array]) -> tuple[Image, Image]:
            t, r = interval
            return x - (t - r) * denoiser.average_velocity(x, r, t), x

        image, states = jax.lax.scan(step, noise, (times[:-1], times[1:]))
        return states, image
