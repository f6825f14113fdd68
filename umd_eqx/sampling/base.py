"""What a sampler is, and what it takes a network's word for."""

import abc
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from umd_eqx.errors import BadInput
from umd_eqx.models import AbstractModel
from umd_eqx.paths import AbstractDiscretePath, AbstractPath, AbstractSmoothPath
from umd_eqx.types import Image, Label, Prediction, Time

Head = Literal["eps", "x0", "v"]
"""Which output of the network is believed: the noise (the reference), the clean image, or both through the path's v."""

SAFE_END = 1e-3
"""How far from an end of [0, 1] a sampler stays where the path divides by zero there."""

States = Float[Array, "k h w c"]

_HALVINGS = 60
"""Steps of bisection: 2^-60 of an interval within [0, 1] is below the rounding in float64 of any time above 0.01."""


class AbstractSampler(eqx.Module):
    """Hyper-parameters of a way from noise to an image.

    `sampler(model, path, noise, y, key)` is one image; use `jax.vmap`, or `sample` for many. The way goes from the
    first time of a grid to its last, and ends in the clean image as it is predicted there.
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
    def __call__(self, model: AbstractModel, path: AbstractPath, noise: Image, y: Label, key: PRNGKeyArray) -> Image:
        """An image of class `y`, from standard normal `noise`. `key` is used by samplers that add noise on the way.

        Raises `BadInput` naming `--sampler` for a path that the sampler cannot go along.
        """

    @abc.abstractmethod
    def states(
        self, model: AbstractModel, path: AbstractPath, noise: Image, y: Label, key: PRNGKeyArray
    ) -> tuple[Float[Array, "k"], States]:
        """The times on the way at which the network is asked, from noise to clean, and the noised image at each."""

    @abc.abstractmethod
    def evaluations(self, path: AbstractPath) -> int | None:
        """How often the network is asked for one image; None where the sampler decides that on the way."""

    def trajectory(
        self, model: AbstractModel, path: AbstractPath, noise: Image, y: Label, key: PRNGKeyArray
    ) -> tuple[Float[Array, "k"], States]:
        """The times of `states`, and the clean image as it is predicted at each: a film of the image coming out."""
        times, states = self.states(model, path, noise, y, key)

        def predict(state: tuple[Time, Image]) -> Image:
            return denoise(model, path, state[1], state[0], y, head=self.head, clip=self.clip).x0

        return times, jax.lax.map(predict, (times, states))


def denoise(
    model: AbstractModel, path: AbstractPath, x: Image, t: Time, y: Label, *, head: Head, clip: bool
) -> Prediction:
    """The clean image and the noise that agree with each other and with `x`, by one output of the network.

    **Arguments:**

    - `x`, `t`: the noised image, and its time in (0, 1]; with head "eps" alpha(t) is not 0.
    - `head`: which output is believed.
    - `clip`: the clean image is kept in [-1, 1] and the noise computed anew from it, as the reference does in pixels.
    """
    prediction = model(x, path.network_time(t), y)
    if head == "v":
        x0, eps = path.x0_eps_from_v(x, path.v_from_x0_eps(prediction.x0, prediction.eps, t), t)
    elif head == "eps":
        x0, eps = path.x0_from_eps(x, prediction.eps, t), prediction.eps
    else:
        x0, eps = prediction.x0, path.eps_from_x0(x, prediction.x0, t)
    if clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
        eps = path.eps_from_x0(x, x0, t)
    return Prediction(x0, eps)


def levels(path: AbstractPath, times: Float64[np.ndarray, "k"]) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) at times in [0, 1] in float64, as numbers that a compiled sampler holds."""
    if isinstance(path, AbstractDiscretePath):
        abar = np.concatenate([[1.0], path.alphas_cumprod()])[np.rint(times * path.steps).astype(int)]
        return np.sqrt(abar), np.sqrt(1.0 - abar)
    return _compiled_levels(path, len(times))(times)


def log_noise_to_signal(path: AbstractPath, times: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
    """log(sigma / alpha) at times in (0, 1], in float64: minus half of the log-SNR. Infinite where alpha is 0."""
    return _log_ratio(levels(path, times))


def times_of(
    path: AbstractPath, log_ratio: Float64[np.ndarray, "k"], ends: tuple[float, float]
) -> Float64[np.ndarray, "k"]:
    """The inverse of `log_noise_to_signal`, which rises with t on every path: times within `ends` (low, high).

    Ratios beyond those of the ends give the ends. On a smooth path the times are found by bisection, to the precision
    of float64. On a table the ratio is interpolated between the steps; the times are not rounded to steps.
    """
    low, high = ends
    if isinstance(path, AbstractDiscretePath):
        steps = np.arange(1, path.steps + 1) / path.steps
        return np.clip(np.interp(log_ratio, log_noise_to_signal(path, steps), steps), low, high)
    if len(log_ratio) == 0:
        return np.zeros(0)
    at = _compiled_levels(path, len(log_ratio))
    below, above = np.full_like(log_ratio, low), np.full_like(log_ratio, high)
    below[log_ratio >= _log_ratio(at(above))] = high
    for _ in range(_HALVINGS):
        middle = 0.5 * (below + above)
        beyond = _log_ratio(at(middle)) > log_ratio
        below, above = np.where(beyond, below, middle), np.where(beyond, middle, above)
    return below


def _log_ratio(both: tuple[np.ndarray, np.ndarray]) -> Float64[np.ndarray, "k"]:
    alpha, sigma = both
    with np.errstate(divide="ignore"):
        return np.log(sigma) - np.log(alpha)


def _compiled_levels(path: AbstractPath, count: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`levels` of a smooth path at any `count` times."""
    with jax.enable_x64(True):
        # Compiled ahead of time, so that these are numbers also where a sampler is being traced.
        both = jax.jit(jax.vmap(lambda t: (path.alpha(t), path.sigma(t))))
        compiled = both.lower(jax.ShapeDtypeStruct((count,), jnp.float64)).compile()

    def at(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            alpha, sigma = compiled(np.asarray(times, np.float64))
            return np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)

    return at


def begin(path: AbstractPath, times: Float64[np.ndarray, "k"], noise: Image) -> Image:
    """Where the way begins: sigma(t) times the noise at the first time; on a table the noise, as in the reference."""
    if isinstance(path, AbstractDiscretePath):
        return noise
    return noise * jnp.asarray(levels(path, times[:1])[1][0], noise.dtype)


def end_times(path: AbstractPath, head: Head) -> tuple[float, float]:
    """(last, first) time at which a sampler asks the network.

    A table's own ends, 1/T and 1. A smooth path's `t_min` and `t_max`, but no nearer than `SAFE_END` to where it
    divides by zero: sigma at t = 0, and with the eps head alpha at t = 1.
    """
    if isinstance(path, AbstractDiscretePath):
        return 1.0 / path.steps, 1.0
    assert isinstance(path, AbstractSmoothPath)
    alpha, sigma = levels(path, np.array([path.t_min, path.t_max]))
    low = max(path.t_min, SAFE_END) if sigma[0] == 0 else path.t_min
    high = min(path.t_max, 1 - SAFE_END) if alpha[1] == 0 and head == "eps" else path.t_max
    return low, high


def require_smooth(path: AbstractPath, sampler: str) -> AbstractSmoothPath:
    """The path, if it has rates. Raises `BadInput` naming `--sampler` for a table, whose derivative would be 0."""
    if not isinstance(path, AbstractSmoothPath):
        problem = f"{sampler} follows the rates of the path, and a table has none"
        raise BadInput("--sampler", problem, "Pass umd_eqx.paths.smooth(path), or take ddim or dpmpp")
    return path
