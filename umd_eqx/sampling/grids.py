"""At which times a sampler asks the network, from noise to clean."""

import abc
import math
from collections.abc import Callable, Mapping

import equinox as eqx
import numpy as np
from jaxtyping import Float64

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import NETWORK_STEPS, AbstractDiscretePath, AbstractPath
from umd_eqx.sampling.denoisers import Ends
from umd_eqx.sampling.fields import flag, require_levels
from umd_eqx.sampling.levels import log_noise_to_signal, times_of

Times = Float64[np.ndarray, "k"]


class AbstractGrid(eqx.Module):
    """A choice of times. Known when a sampler is compiled: it depends on no array."""

    @abc.abstractmethod
    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """Falling times in (0, 1], `steps` of them or, on a table, fewer where two would be one.

        `side` is that of the image in pixels; `ends` are the last and the first time (`AbstractDenoiser.ends`).
        """

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for values that cannot work; `field` is the grid's own flag.

        Nothing is refused unless a grid says so.
        """


class UniformGrid(AbstractGrid):
    """Evenly in t."""

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """From the first time to the last."""
        low, high = ends
        return _on(path, np.linspace(high, low, steps))


class ReferenceGrid(AbstractGrid):
    """The reference's: diffusion indices from T - 1 down in strides of floor(-T / steps) in size, and then 0.

    So `steps` + 1 calls where `steps` divides T, and fewer than `steps` for 62 of 1000, whose stride is 17. The
    reference asks again at index 0 until it has asked `steps` + 1 times, which changes nothing. T is 1000 on a smooth
    path.
    """

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """The times of the indices."""
        total = path.steps if isinstance(path, AbstractDiscretePath) else NETWORK_STEPS
        indices = np.append(np.arange(total - 1, 0, math.floor(-total / steps)), 0)
        return _on(path, np.clip((indices + 1.0) / total, *ends))


class EDMGrid(AbstractGrid):
    """Evenly in the rho-th root of sigma / alpha (Karras et al. 2022, eq. 5), within [sigma_min, sigma_max]."""

    rho: float = eqx.field(static=True, default=7.0)
    """The larger, the shorter the steps at low noise; 1 is evenly in sigma / alpha."""
    sigma_min: float = eqx.field(static=True, default=0.002)
    """Smallest sigma / alpha."""
    sigma_max: float = eqx.field(static=True, default=80.0)
    """Largest sigma / alpha."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for values that cannot work."""
        require_levels(self.sigma_min, self.sigma_max, field)
        if not 0 < self.rho < math.inf:
            raise BadInput(flag(field, "rho"), f"{self.rho} is not positive", "Published is 7")

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """The times of these noise levels, as far as the path has them."""
        log_ratios = np.clip(
            log_noise_to_signal(path, np.array(ends)), math.log(self.sigma_min), math.log(self.sigma_max)
        )
        low, high = np.exp(log_ratios / self.rho)
        return _on(path, times_of(path, self.rho * np.log(np.linspace(high, low, steps)), ends))


class LogSNRGrid(AbstractGrid):
    """Evenly in the log-SNR (Lu et al. 2022a, section 3.3), with sigma / alpha within [sigma_min, sigma_max].

    On a path that goes on beyond `sigma_max`, to alpha = 0 for example, the first time is the end of the path and the
    first step leads to `sigma_max`. The prediction hardly changes over that step, but the path holds pure noise only at
    its end. A table gives `steps` different times, or all of its own if it has fewer: times that would be rounded to
    the same step are moved to the next free one.
    """

    sigma_min: float = eqx.field(static=True, default=0.002)
    """Smallest sigma / alpha."""
    sigma_max: float = eqx.field(static=True, default=80.0)
    """Largest sigma / alpha, but for the first time."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for values that cannot work."""
        require_levels(self.sigma_min, self.sigma_max, field)

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """The first time of the path, then those of these levels, as far as the path has them."""
        log_ratios = log_noise_to_signal(path, np.array(ends))
        low, high = np.clip(log_ratios, math.log(self.sigma_min), math.log(self.sigma_max))
        if high == log_ratios[1]:
            return _on_each(path, times_of(path, np.linspace(high, low, steps), ends))
        inner = times_of(path, np.linspace(high, low, steps - 1), ends)
        return _on_each(path, np.append(ends[1], inner))


class ShiftedGrid(AbstractGrid):
    """Evenly in t, then sigma / alpha times `side` / `base`: larger images are noised more at the same time.

    Hoogeboom et al. 2023, eq. 4; on the rectified flow it is t' = s t / (1 + (s - 1) t) of Esser et al. 2024, eq. 23.
    The ends stay where they are.
    """

    base: int = eqx.field(static=True, default=64)
    """The side, in pixels, of images whose times are not shifted."""

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for values that cannot work."""
        if self.base < 1:
            raise BadInput(flag(field, "base"), f"{self.base} is too small", "Use 1 or more; published is 64")

    def times(self, path: AbstractPath, steps: int, side: int, ends: Ends) -> Times:
        """The shifted times."""
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
"""What `--grid` can name."""


def _on(path: AbstractPath, times: Float64[np.ndarray, "asked"]) -> Times:
    """Falling times without repeats; on a table, its own."""
    if isinstance(path, AbstractDiscretePath):
        times = np.maximum(np.rint(times * path.steps), 1) / path.steps
    return np.unique(times)[::-1]


def _on_each(path: AbstractPath, times: Float64[np.ndarray, "asked"]) -> Times:
    """As `_on`, but as many times as are asked for, or all that a table has."""
    if not isinstance(path, AbstractDiscretePath):
        return _on(path, times)
    asked = min(len(times), path.steps)
    even = np.maximum(np.rint(times * path.steps), 1)[:asked]
    steps = np.maximum.accumulate(even[::-1] - np.arange(asked)) + np.arange(asked)  # rising, each above the one before
    return np.minimum(steps, path.steps - np.arange(asked)[::-1])[::-1] / path.steps
