"""Grids: the times at which a sampler evaluates the network, from noise to clean."""

import abc
import math
from collections.abc import Callable, Mapping

import equinox as eqx
import numpy as np
from jaxtyping import Float64

from umd_eqx.core.errors import BadInput, member
from umd_eqx.core.paths import NETWORK_STEPS, AbstractDiscretePath, AbstractPath
from umd_eqx.sampling.denoisers import Ends
from umd_eqx.sampling.fields import require_levels
from umd_eqx.sampling.levels import log_noise_to_signal, times_of

Times = Float64[np.ndarray, "k"]


class AbstractGrid(eqx.Module):
    """A choice of times. It depends on no array, and is therefore known when a sampler is compiled."""

    @abc.abstractmethod
    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """Returns `steps` decreasing times in (0, 1], or fewer if some of them coincide on a tabulated path.

        `side` is the side of the image in pixels; `ends` are the last and the first time (`AbstractDenoiser.ends`).
        """

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values; `field` is the name of the grid itself.

        Accepts everything unless overridden.
        """


class UniformGrid(AbstractGrid):
    """Times that are even in t."""

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """Returns even times from the first to the last."""
        low, high = ends
        return _on(path, np.linspace(high, low, steps))


class ReferenceGrid(AbstractGrid):
    """The times of the reference: diffusion indices from T - 1 downwards in strides of ceil(T / steps), and then 0.

    This gives `steps` + 1 evaluations if `steps` divides T, and fewer than `steps` for 62 of 1000, whose stride is 17.
    The reference repeats index 0 up to `steps` + 1 evaluations, which has no effect. T is 1000 on a smooth path.
    """

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """Returns the times of these diffusion indices."""
        total = path.steps if isinstance(path, AbstractDiscretePath) else NETWORK_STEPS
        indices = np.append(np.arange(total - 1, 0, math.floor(-total / steps)), 0)
        return _on(path, np.clip((indices + 1.0) / total, *ends))


class EDMGrid(AbstractGrid):
    """Times even in the rho-th root of sigma / alpha, in [sigma_min, sigma_max] (EDM: Karras et al. 2022, eq. 5)."""

    rho: float = eqx.field(static=True, default=7.0)
    """Exponent: larger values give shorter steps at low noise; 1 gives steps even in sigma / alpha."""
    sigma_min: float = eqx.field(static=True, default=0.002)
    """Smallest noise-to-signal ratio sigma / alpha."""
    sigma_max: float = eqx.field(static=True, default=80.0)
    """Largest noise-to-signal ratio sigma / alpha."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values."""
        require_levels(self.sigma_min, self.sigma_max, field)
        if not 0 < self.rho < math.inf:
            raise BadInput(member(field, "rho"), f"{self.rho} is not positive", "Use the published 7, for example")

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """Returns the times of these noise levels, restricted to the range of the path."""
        log_ratios = np.clip(
            log_noise_to_signal(path, np.array(ends)), math.log(self.sigma_min), math.log(self.sigma_max)
        )
        low, high = np.exp(log_ratios / self.rho)
        return _on(path, times_of(path, self.rho * np.log(np.linspace(high, low, steps)), ends))


class LogSNRGrid(AbstractGrid):
    """Times even in the log-SNR (Lu et al. 2022a, section 3.3), with sigma / alpha in [sigma_min, sigma_max].

    If the path extends beyond `sigma_max`, for example to alpha = 0, the first time is the end of the path and the
    first step leads to `sigma_max`. The prediction hardly changes over that step, but only the end of the path is pure
    noise. On a tabulated path, there are `steps` distinct times, or all times of the table if it has fewer: times that
    would be rounded to the same entry are moved to the next free one.
    """

    sigma_min: float = eqx.field(static=True, default=0.002)
    """Smallest noise-to-signal ratio sigma / alpha."""
    sigma_max: float = eqx.field(static=True, default=80.0)
    """Largest noise-to-signal ratio sigma / alpha, except at the first time."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values."""
        require_levels(self.sigma_min, self.sigma_max, field)

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """Returns the first time of the path and the times of these levels, restricted to the range of the path."""
        log_ratios = log_noise_to_signal(path, np.array(ends))
        low, high = np.clip(log_ratios, math.log(self.sigma_min), math.log(self.sigma_max))
        if high == log_ratios[1]:
            return _on_each(path, times_of(path, np.linspace(high, low, steps), ends))
        inner = times_of(path, np.linspace(high, low, steps - 1), ends)
        return _on_each(path, np.append(ends[1], inner))


class ShiftedGrid(AbstractGrid):
    """Times even in t, shifted by multiplying sigma / alpha by `side` / `base`: more noise for larger images.

    See Hoogeboom et al. 2023, eq. 4. On the rectified flow, this is t' = s t / (1 + (s - 1) t) of Esser et al. 2024,
    eq. 23. The end times are not shifted.
    """

    base: int = eqx.field(static=True, default=64)
    """Side in pixels of images for which the times are not shifted."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for invalid values."""
        if self.base < 1:
            raise BadInput(
                member(field, "base"), f"{self.base} is too small", "Use 1 or more, such as the published 64"
            )

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """Returns the shifted times."""
        times = UniformGrid().times(path, steps, side, ends)
        inner = log_noise_to_signal(path, times[1:-1]) + math.log(side / self.base)
        return _on(path, np.concatenate([times[:1], times_of(path, inner, ends), times[1:][-1:]]))


GRIDS: Mapping[str, Callable[[], AbstractGrid]] = {
    "reference": ReferenceGrid,
    "uniform": UniformGrid,
    "edm": EDMGrid,
    "logsnr": LogSNRGrid,
    "shifted": ShiftedGrid,
}
"""The values of `--grid`."""


def _on(path: AbstractPath, times: Float64[np.ndarray, "n"]) -> Times:
    """Returns decreasing, distinct times, rounded to the entries of a tabulated path."""
    if isinstance(path, AbstractDiscretePath):
        times = np.maximum(np.rint(times * path.steps), 1) / path.steps
    return np.unique(times)[::-1]


def _on_each(path: AbstractPath, times: Float64[np.ndarray, "n"]) -> Times:
    """As `_on`, but with as many times as requested, or all times of the table if it has fewer."""
    if not isinstance(path, AbstractDiscretePath):
        return _on(path, times)
    count = min(len(times), path.steps)
    even = np.maximum(np.rint(times * path.steps), 1)[:count]
    steps = np.maximum.accumulate(even[::-1] - np.arange(count)) + np.arange(count)  # strictly increasing
    return np.minimum(steps, path.steps - np.arange(count)[::-1])[::-1] / path.steps
