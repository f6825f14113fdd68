"""Networks and ways whose answer is known."""

import statistics

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from oracle import GaussianOracle

from umd_eqx.core.paths import NETWORK_STEPS, AbstractPath
from umd_eqx.core.predictions import PredictionType, X0EpsPrediction
from umd_eqx.core.types import NO_CLASS, Cond
from umd_eqx.models import AbstractModel
from umd_eqx.sampling.levels import levels


class Sure(AbstractModel):
    """Knows no limits: predictions as large as what it sees, whatever the time, and one that the label moves."""

    image_shape: tuple[int, int, int] = eqx.field(static=True, default=(2, 2, 1))
    num_classes: int | None = eqx.field(static=True, default=10)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    def cond(self, y=NO_CLASS) -> Cond:
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x, cond, view=None, *, key=None) -> X0EpsPrediction:
        return X0EpsPrediction(0.5 * x + 0.1 * cond.y, 0.8 * x - 1e-4 * cond.t)


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


normal_cdf = np.vectorize(statistics.NormalDist().cdf)
normal_quantile = np.vectorize(statistics.NormalDist().inv_cdf)


class Mixture(AbstractModel):
    """The best network for one pixel whose values are a mixture of normal distributions of one variance."""

    path: AbstractPath
    means: Float[Array, "components"]
    weights: Float[Array, "components"]
    variance: float = eqx.field(static=True)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=(1, 1, 1))
    num_classes: int | None = eqx.field(static=True, default=None)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    @classmethod
    def of(cls, path: AbstractPath, variance: float) -> "Mixture":
        """Three components."""
        return cls(path, jnp.asarray([-0.7, -0.1, 0.6]), jnp.asarray([0.3, 0.3, 0.4]), variance)

    def cond(self, y=NO_CLASS) -> Cond:
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x, cond, view=None, *, key=None) -> X0EpsPrediction:
        t = cond.t / NETWORK_STEPS
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        variance = alpha**2 * self.variance + sigma**2
        off = x.reshape(()) - alpha * self.means
        share = jax.nn.softmax(jnp.log(self.weights) - 0.5 * off**2 / variance)
        x0 = jnp.sum(share * (self.means + alpha * self.variance / variance * off))
        return X0EpsPrediction(x0.reshape(x.shape), jnp.sum(share * sigma / variance * off).reshape(x.shape))

    def flow_map(self, noise: Float[np.ndarray, "b"], first: float, last: float) -> np.ndarray:
        """Where the exact flow takes sigma(first) noise, and the clean pixel as it is expected there, in float64.

        In one dimension the flow keeps the order of the points, and with it the share of the mass below each.
        """
        means, weights = (np.asarray(leaf, np.float64) for leaf in (self.means, self.weights))
        (a0, a1), (s0, s1) = levels(self.path, np.array([first, last]))

        def below(x: np.ndarray, a: float, s: float) -> np.ndarray:
            return normal_cdf((x[:, None] - a * means) / np.sqrt(a**2 * self.variance + s**2)) @ weights

        share = below(s0 * noise, a0, s0)
        low, high = np.full_like(share, -10.0), np.full_like(share, 10.0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            beyond = below(middle, a1, s1) > share
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        variance = a1**2 * self.variance + s1**2
        off = low[:, None] - a1 * means
        component = weights * np.exp(-0.5 * off**2 / variance)
        expected = means + a1 * self.variance / variance * off
        return np.sum(component * expected, axis=1) / np.sum(component, axis=1)


@eqx.filter_jit
def run(sampler, model, path, noise, key, step_noise=None) -> Float[Array, "b h w c"]:
    """An image for each noise, each with a key of its own."""
    keys = jax.random.split(key, len(noise))
    given = {} if step_noise is None else {"step_noise": step_noise}
    axes = (0, 0, {name: 0 for name in given})
    denoiser = sampler.denoiser(model, path, model.cond(0))
    return jax.vmap(lambda n, k, g: sampler(denoiser, n, k, **g), in_axes=axes)(noise, keys, given)
