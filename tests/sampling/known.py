"""Networks and ways whose answer is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from oracle import GaussianOracle

from umd_eqx.models import AbstractModel
from umd_eqx.paths import AbstractPath
from umd_eqx.sampling.base import levels
from umd_eqx.types import Prediction


class Sure(AbstractModel):
    """Knows no limits: predictions as large as what it sees, whatever the time, and one that the label moves."""

    image_shape: tuple[int, int, int] = eqx.field(static=True, default=(2, 2, 1))
    num_classes: int | None = eqx.field(static=True, default=10)
    patch: int = eqx.field(static=True, default=1)
    num_patches: int = eqx.field(static=True, default=4)

    def __call__(self, x, t, y, view=None, *, key=None) -> Prediction:
        return Prediction(0.5 * x + 0.1 * y, 0.8 * x - 1e-4 * t)

    def represent(self, x, t, y):
        raise NotImplementedError


def single_pixel(path: AbstractPath, mean: float = 0.4, variance: float = 0.3) -> GaussianOracle:
    """One Gaussian pixel: what a sampler makes of noise is then a number times it, plus another."""
    return GaussianOracle(path, jnp.full((1, 1, 1), mean), jnp.full((1, 1), variance))


def flow_map(oracle: GaussianOracle, noise: Float[Array, "b h w c"], first: float, last: float) -> np.ndarray:
    """Where the exact probability flow takes sigma(first) noise, and the clean image as it is expected there.

    Along each axis of the covariance, x_t - alpha mu is stretched as the standard deviation of x_t is.
    """
    (a0, a1), (s0, s1) = levels(oracle.path, np.array([first, last]))
    mean = np.asarray(oracle.mean, np.float64).reshape(-1)
    variances, axes = np.linalg.eigh(np.asarray(oracle.covariance, np.float64))
    start = (s0 * np.asarray(noise, np.float64).reshape(len(noise), -1) - a0 * mean) @ axes
    end = start * np.sqrt((a1**2 * variances + s1**2) / (a0**2 * variances + s0**2))
    expected = a1 * variances / (a1**2 * variances + s1**2) * end
    return (expected @ axes.T + mean).reshape(noise.shape)


@eqx.filter_jit
def run(sampler, model, path, noise, key, step_noise=None) -> Float[Array, "b h w c"]:
    """An image for each noise, each with a key of its own."""
    keys = jax.random.split(key, len(noise))
    given = {} if step_noise is None else {"step_noise": step_noise}
    axes = (0, 0, {name: 0 for name in given})
    y = jnp.asarray(0)
    return jax.vmap(lambda n, k, g: sampler(model, path, n, y, k, **g), in_axes=axes)(noise, keys, given)
