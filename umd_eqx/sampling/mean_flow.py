"""Sampling from average velocities, with one or a few network evaluations."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.predictions import Head
from umd_eqx.core.types import Image
from umd_eqx.sampling.base import AbstractSampler, States
from umd_eqx.sampling.denoisers import AbstractDenoiser
from umd_eqx.sampling.fields import require_steps


class MeanFlowSampler(AbstractSampler):
    """MeanFlow sampling: x_r = x_t - (t - r) u(x_t, r, t) on even intervals from t = 1 to 0.

    See Geng et al. 2025, algorithm 2. With one step, x0 = eps - u(eps, 0, 1). The denoiser must have average
    velocities, as that of a network trained with `umd_eqx.objectives.MeanFlow` does; guided denoisers have none.
    """

    steps: int = eqx.field(static=True, default=1)
    """Number of steps from noise to the image, with one network evaluation each."""
    head: Head = eqx.field(static=True, default="v")
    """Unused: the network has a single output."""
    clip: bool = eqx.field(static=True, default=True)
    """Clip the image to [-1, 1]. Latents are never clipped."""

    @property
    def supports_guidance(self) -> bool:
        """Always False: a guided denoiser has no average velocities."""
        return False

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for less than one step."""
        require_steps(self.steps, field)

    def __call__(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> Image:
        """Returns an image from noise; `key` is unused. Raises `BadInput` naming `sampler` for any other denoiser."""
        image = self._solve(denoiser, noise)[1]
        return jnp.clip(image, -1.0, 1.0) if self.clip else image

    def states(self, denoiser: AbstractDenoiser, noise: Image, key: PRNGKeyArray) -> tuple[Float[Array, "k"], States]:
        """Returns the initial time of each interval, and the noised image there; `key` is unused."""
        return self._times(noise)[:-1], self._solve(denoiser, noise)[0]

    def evaluations(self, denoiser: AbstractDenoiser) -> int:
        """Returns `steps`."""
        return self.steps

    def _times(self, noise: Image) -> Float[Array, "k"]:
        return jnp.linspace(1.0, 0.0, self.steps + 1, dtype=noise.dtype)

    def _solve(self, denoiser: AbstractDenoiser, noise: Image) -> tuple[States, Image]:
        times = self._times(noise)

        def step(x: Image, interval: tuple[Array, Array]) -> tuple[Image, Image]:
            t, r = interval
            return x - (t - r) * denoiser.average_velocity(x, r, t), x

        image, states = jax.lax.scan(step, noise, (times[:-1], times[1:]))
        return states, image
