"""Data whose answer is known in closed form: Gaussian images, and the best possible network for them.

For x0 ~ N(mu, C) and x_t = alpha x0 + sigma eps, of which the entries V are seen, with S = alpha^2 C + sigma^2 I:

    E[x0 | x_V]  = mu + alpha C_{:V} S_VV^-1 (x_V - alpha mu_V),   Cov = C - alpha^2 C_{:V} S_VV^-1 C_{V:}
    E[eps | x_V] =      sigma I_{:V} S_VV^-1 (x_V - alpha mu_V),   Cov = I - sigma^2 I_{:V} S_VV^-1 I_{V:}
"""

from typing import NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.masking import View, hidden_pixels
from umd_eqx.core.paths import NETWORK_STEPS, AbstractPath
from umd_eqx.core.predictions import AbstractPrediction, PredictionType, VPrediction, X0EpsPrediction, X0Prediction
from umd_eqx.core.types import NO_CLASS, AbstractCond, Cond, Image, Label, Representation, Time
from umd_eqx.models import AbstractPatchModel


class Errors(NamedTuple):
    """The expected squared error of each pixel, of the clean image and of the noise."""

    x0: Image
    eps: Image


class GaussianOracle(AbstractPatchModel):
    """Predicts what is expected of the clean image and of the noise, given what it sees: no network has less error.

    `num_classes` may be given to pass for a network with labels; they change nothing. `prediction` "x0" or "v" makes it
    predict the clean image alone, or v, instead of both.
    """

    path: AbstractPath
    mean: Image
    covariance: Float[Array, "values values"]
    patch: int = eqx.field(static=True, default=1)
    num_classes: int | None = eqx.field(static=True, default=None)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    @classmethod
    def random(cls, path: AbstractPath, shape: tuple[int, int, int], *, seed: int = 0, patch: int = 1) -> Self:
        """A Gaussian whose pixels have different means and variances and depend on one another."""
        rng, values = np.random.default_rng(seed), int(np.prod(shape))
        mixing = rng.normal(size=(values, values)) * rng.uniform(0.2, 0.8, values)
        covariance = mixing @ mixing.T / values**0.5 + 0.01 * np.eye(values)
        return cls(path, jnp.asarray(rng.normal(size=shape)), jnp.asarray(covariance), patch)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of the mean."""
        return self.mean.shape

    @property
    def num_patches(self) -> int:
        """Patches in an image."""
        return (self.mean.shape[0] // self.patch) * (self.mean.shape[1] // self.patch)

    def sample(self, key: PRNGKeyArray, num: int) -> Float[Array, "num h w c"]:
        """Clean images."""
        root = jnp.linalg.cholesky(self.covariance)
        noise = jax.random.normal(key, (num, root.shape[0]), self.mean.dtype)
        return (noise @ root.T).reshape(num, *self.mean.shape) + self.mean[None]

    def cond(self, y: Label = NO_CLASS) -> Cond:
        """Time 0 and the label."""
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(
        self, x: Image, cond: AbstractCond, view: View | None = None, *, key: PRNGKeyArray | None = None
    ) -> AbstractPrediction:
        """The two conditional means, the clean image's alone, or that of v."""
        t = cond.t / NETWORK_STEPS
        alpha, sigma, seen = self._levels(t, view)
        surprise = seen * (x - alpha * self.mean).reshape(-1)
        explained = seen * jnp.linalg.solve(self._seen_covariance(alpha, sigma, seen), surprise)
        x0 = (self.mean.reshape(-1) + alpha * self.covariance @ explained).reshape(x.shape)
        eps = (sigma * explained).reshape(x.shape)
        match self.prediction:
            case "x0_eps":
                return X0EpsPrediction(x0, eps)
            case "x0":
                return X0Prediction(x0)
            case _:
                return VPrediction(self.path.v_from_x0_eps(x0, eps, t))

    def represent(self, x: Image, cond: AbstractCond) -> Representation:
        """The pixels themselves."""
        return Representation(x.reshape(-1), x.reshape(-1))

    def errors(self, t: Time, view: View | None = None) -> Errors:
        """The expected squared error of each pixel, of x0 and of eps: what the loss must come to."""
        alpha, sigma, seen = self._levels(t, view)
        inverse = jnp.linalg.inv(self._seen_covariance(alpha, sigma, seen)) * seen[None] * seen[:, None]
        x0 = jnp.diag(self.covariance - alpha**2 * self.covariance @ inverse @ self.covariance)
        return Errors(x0.reshape(self.mean.shape), (1.0 - sigma**2 * jnp.diag(inverse)).reshape(self.mean.shape))

    def _levels(self, t: Time, view: View | None) -> tuple[Array, Array, Float[Array, "values"]]:
        seen = jnp.ones_like(self.mean)
        if view is not None:
            seen = seen - jnp.broadcast_to(hidden_pixels(view, self.mean, self.patch), seen.shape).astype(seen.dtype)
        # A table is float32 also where everything else is float64.
        alpha, sigma = self.path.alpha(t).astype(seen.dtype), self.path.sigma(t).astype(seen.dtype)
        return alpha, sigma, seen.reshape(-1)

    def _seen_covariance(self, alpha: Array, sigma: Array, seen: Float[Array, "values"]) -> Float[Array, "v v"]:
        # The identity where nothing is seen: there it is multiplied by zero.
        identity = jnp.eye(seen.size, dtype=seen.dtype)
        both = seen[None] * seen[:, None]
        return both * (alpha**2 * self.covariance + sigma**2 * identity) + (1.0 - seen)[None] * identity
