"""The noise levels of a path in float64, and the times of given noise levels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from umd_eqx.core.paths import AbstractDiscretePath, AbstractPath

_BISECTIONS = 60
"""Bisection steps: 2^-60 of an interval in [0, 1] is below the float64 rounding error of any time above 0.01."""


def levels(path: AbstractPath, times: Float64[np.ndarray, "k"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (alpha, sigma) at times in [0, 1] in float64, as NumPy arrays: constants of a compiled sampler."""
    if isinstance(path, AbstractDiscretePath):
        abar = np.concatenate([[1.0], path.alphas_cumprod()])[np.rint(times * path.steps).astype(int)]
        return np.sqrt(abar), np.sqrt(1.0 - abar)
    return _compiled_levels(path, len(times))(times)


def log_noise_to_signal(path: AbstractPath, times: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
    """Returns log(sigma / alpha) at times in (0, 1] in float64: minus half the log-SNR. Infinite where alpha is 0."""
    return _log_ratio(levels(path, times))


def times_of(
    path: AbstractPath, log_ratio: Float64[np.ndarray, "k"], ends: tuple[float, float]
) -> Float64[np.ndarray, "k"]:
    """Inverts `log_noise_to_signal`, which increases with t on every path. Returns times within `ends` (low, high).

    Ratios beyond those of the ends give the ends. On a smooth path, the times are found by bisection to float64
    precision. On a tabulated path, the ratio is interpolated between the entries, and times are not rounded to entries.
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
    for _ in range(_BISECTIONS):
        middle = 0.5 * (below + above)
        beyond = _log_ratio(at(middle)) > log_ratio
        below, above = np.where(beyond, below, middle), np.where(beyond, middle, above)
    return below


def _log_ratio(both: tuple[np.ndarray, np.ndarray]) -> Float64[np.ndarray, "k"]:
    alpha, sigma = both
    with np.errstate(divide="ignore"):
        return np.log(sigma) - np.log(alpha)


def _compiled_levels(path: AbstractPath, count: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns a function that computes the `levels` of a smooth path at any `count` times."""
    with jax.enable_x64(True):
        # Compiled ahead of time, which gives concrete values even while a sampler is being traced.
        both = jax.jit(jax.vmap(lambda t: (path.alpha(t), path.sigma(t))))
        compiled = both.lower(jax.ShapeDtypeStruct((count,), jnp.float64)).compile()

    def at(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            alpha, sigma = compiled(np.asarray(times, np.float64))
            return np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)

    return at
