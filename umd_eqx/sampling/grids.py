"""At which times a sampler asks the network, from noise to clean."""

import abc
import math

import equinox as eqx
import numpy as np
from jaxtyping import Float64

from umd_eqx.paths import NETWORK_STEPS, AbstractDiscretePath, AbstractPath
from umd_eqx.sampling.base import Head, end_times, levels

Times = Float64[np.ndarray, "k"]

_FINE = 20_001
"""Points by which the noise level is turned back into a time."""


class AbstractGrid(eqx.Module):
    """A choice of times. Known when a sampler is compiled: it depends on no array."""

    @abc.abstractmethod
    def times(self, path: AbstractPath, steps: int, side: int, head: Head) -> Times:
        """Falling times in (0, 1], `steps` of them or, on a table, fewer where two would be one.

        `side` is that of the image in pixels; `head` decides how near the ends may be (`end_times`).
        """


class UniformGrid(AbstractGrid):
    """Evenly in t."""

    def times(self, path: AbstractPath, steps: int, side: int, head: Head) -> Times:
        """From the first time to the last."""
        low, high = end_times(path, head)
        return _on(path, np.linspace(high, low, steps))


class ReferenceGrid(AbstractGrid):
    """The reference's: diffusion indices from T - 1 down in strides of floor(-T / steps) in size, and then 0.

    So `steps` + 1 calls where `steps` divides T, and fewer than `steps` for 62 of 1000, whose stride is 17. The
    reference asks again at index 0 until it has asked `steps` + 1 times, which changes nothing. T is 1000 on a smooth
    path.
    """

    def times(self, path: AbstractPath, steps: int, side: int, head: Head) -> Times:
        """The times of the indices."""
        total = path.steps if isinstance(path, AbstractDiscretePath) else NETWORK_STEPS
        indices = np.append(np.arange(total - 1, 0, math.floor(-total / steps)), 0)
        return _on(path, np.clip((indices + 1.0) / total, *end_times(path, head)))


class EDMGrid(AbstractGrid):
    """Evenly in the rho-th root of sigma / alpha (Karras et al. 2022, eq. 5), within [sigma_min, sigma_max]."""

    rho: float = eqx.field(static=True, default=7.0)
    sigma_min: float = eqx.field(static=True, default=0.002)
    sigma_max: float = eqx.field(static=True, default=80.0)

    def times(self, path: AbstractPath, steps: int, side: int, head: Head) -> Times:
        """The times of these noise levels, as far as the path has them."""
        fine, ratio = _ratios(path, head)
        high, low = min(self.sigma_max, ratio[0]), max(self.sigma_min, ratio[-1])
        roots = np.linspace(high ** (1 / self.rho), low ** (1 / self.rho), steps)
        return _on(path, _time_of(roots**self.rho, fine, ratio))


class ShiftedGrid(AbstractGrid):
    """Evenly in t, then sigma / alpha times `side` / `base`: larger images are noised more at the same time.

    Hoogeboom et al. 2023, eq. 4; on the rectified flow it is t' = s t / (1 + (s - 1) t) of Esser et al. 2024, eq. 23.
    The ends stay where they are.
    """

    base: int = eqx.field(static=True, default=64)

    def times(self, path: AbstractPath, steps: int, side: int, head: Head) -> Times:
        """The shifted times."""
        fine, ratio = _ratios(path, head)
        even = np.linspace(fine[0], fine[-1], steps)
        plain = np.exp(np.interp(-even, -fine, np.log(ratio)))
        inner = _time_of(plain[1:-1] * side / self.base, fine, ratio)
        return _on(path, np.concatenate([even[:1], inner, even[1:][-1:]]))


def _ratios(path: AbstractPath, head: Head) -> tuple[Times, Times]:
    """Falling times, and sigma / alpha at each; the first may be very large but is finite."""
    low, high = end_times(path, head)
    points = path.steps if isinstance(path, AbstractDiscretePath) else _FINE
    fine = np.linspace(high, low, points)
    alpha, sigma = levels(path, fine)
    return fine, sigma / np.maximum(alpha, 1e-12)


def _time_of(ratio: Times, fine: Float64[np.ndarray, "fine"], fine_ratio: Float64[np.ndarray, "fine"]) -> Times:
    return np.interp(np.log(ratio), np.log(fine_ratio[::-1]), fine[::-1])


def _on(path: AbstractPath, times: Float64[np.ndarray, "asked"]) -> Times:
    """Falling times without repeats; on a table, its own."""
    if isinstance(path, AbstractDiscretePath):
        times = np.maximum(np.rint(times * path.steps), 1) / path.steps
    return np.unique(times)[::-1]
