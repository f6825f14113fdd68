"""Denoisers: the clean image and the noise in x_t, predicted by a network along a path."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractDiscretePath, AbstractPath, AbstractSmoothPath
from umd_eqx.core.predictions import Denoised, Head, VPrediction
from umd_eqx.core.types import AbstractCond, Image, IntervalCond, Time
from umd_eqx.models import AbstractModel
from umd_eqx.sampling.levels import levels

END_MARGIN = 1e-3
"""The distance that samplers keep from an end of [0, 1] at which the path divides by zero."""

Ends = tuple[float, float]
"""The (last, first) time at which a sampler evaluates a denoiser: the ends of a path, away from divisions by zero."""


class AbstractDenoiser(eqx.Module):
    """A function of (x_t, t), with t in (0, 1], that returns a clean image and noise consistent with x_t.

    It holds the conditioning; `with_cond` replaces it, for example by that of another label. A denoiser need not be a
    network: guidance combines other denoisers (`umd_eqx.sampling.guidance`).
    """

    model: eqx.AbstractVar[AbstractModel]
    path: eqx.AbstractVar[AbstractPath]
    cond: eqx.AbstractVar[AbstractCond]

    @property
    @abc.abstractmethod
    def ends(self) -> Ends:
        """The (last, first) time at which a sampler may evaluate it."""

    @abc.abstractmethod
    def with_cond(self, cond: AbstractCond) -> "AbstractDenoiser":
        """Returns the same denoiser with other conditioning."""

    @abc.abstractmethod
    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """Returns the clean image and the noise."""

    def average_velocity(self, x_t: Image, r: Time, t: Time) -> Image:
        """Returns the average velocity u from r to t, 0 <= r <= t: x_r = x_t - (t - r) u (MeanFlow, eq. 3).

        Raises `BadInput` naming `sampler` unless overridden: guidance, for instance, has no average velocities.
        """
        problem = f"{type(self).__name__} has no average velocities"
        raise BadInput("sampler", problem, "Use `cfg_scale=1`, or another sampler")


class ModelDenoiser(AbstractDenoiser):
    """A network as a denoiser along a path.

    **Arguments:**

    - `model`: the network.
    - `path`: the path on which the network was trained, or a smooth path through its noise levels.
    - `cond`: the conditioning. None: the time alone.
    - `head`: which output is used if the network has two: "eps" (the noise, as in the reference), "x0" (the clean
        image), or "v" (the v of the path, computed from both). Other prediction types have a single output.
    """

    model: AbstractModel
    path: AbstractPath
    cond: AbstractCond
    head: Head = eqx.field(static=True)

    def __init__(self, model: AbstractModel, path: AbstractPath, cond: AbstractCond | None = None, *, head: Head = "v"):
        self.model, self.path, self.head = model, path, head
        self.cond = model.cond() if cond is None else cond

    @property
    def ends(self) -> Ends:
        """The `end_times` of the path."""
        return end_times(self.path, self.head if self.model.prediction == "x0_eps" else "v")

    def with_cond(self, cond: AbstractCond) -> "ModelDenoiser":
        """Returns the same denoiser with other conditioning."""
        return ModelDenoiser(self.model, self.path, cond, head=self.head)

    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """Returns the prediction of the network, from its output `head`."""
        prediction = self.model(x_t, self.cond.at(self.path.network_time(t)))
        return prediction.denoised(self.head, self.path, x_t, t)

    def average_velocity(self, x_t: Image, r: Time, t: Time) -> Image:
        """Returns the average velocity from r to t that the network predicts.

        Raises `BadInput` naming `sampler` for a network that does not predict average velocities.
        """
        if not isinstance(self.cond, IntervalCond):
            problem = f"the network predicts {self.model.prediction}, not average velocities"
            raise BadInput("sampler", problem, "Train a network with the mean-flow preset, or use another sampler")
        times = (self.path.network_time(time) for time in (t, r))
        prediction = self.model(x_t, self.cond.at(*times))
        assert isinstance(prediction, VPrediction)
        return prediction.v


class AbstractDerivedDenoiser(AbstractDenoiser):
    """A denoiser computed from `denoiser`, for the same network, path and conditioning."""

    denoiser: eqx.AbstractVar[AbstractDenoiser]

    @property
    def model(self) -> AbstractModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The network of `denoiser`."""
        return self.denoiser.model

    @property
    def path(self) -> AbstractPath:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The path of `denoiser`."""
        return self.denoiser.path

    @property
    def cond(self) -> AbstractCond:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The conditioning of `denoiser`."""
        return self.denoiser.cond


class Clipped(AbstractDerivedDenoiser):
    """A denoiser whose clean image is clipped to [-1, 1], with the noise recomputed from the clipped image.

    The reference does this in pixel space. The recomputation divides by sigma(t).
    """

    denoiser: AbstractDenoiser

    def __init__(self, denoiser: AbstractDenoiser):
        self.denoiser = denoiser

    @property
    def ends(self) -> Ends:
        """The end times of the underlying denoiser."""
        return self.denoiser.ends

    def with_cond(self, cond: AbstractCond) -> "Clipped":
        """Returns the same denoiser with other conditioning."""
        return Clipped(self.denoiser.with_cond(cond))

    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """Returns the clipped clean image and the noise recomputed from it."""
        x0 = jnp.clip(self.denoiser(x_t, t).x0, -1.0, 1.0)
        return Denoised(x0, self.path.eps_from_x0(x_t, x0, t))


def end_times(path: AbstractPath, head: Head) -> Ends:
    """Returns the (last, first) time at which a sampler evaluates a network with the output `head`.

    On a tabulated path these are 1/T and 1. On a smooth path they are `t_min` and `t_max`, kept at least `END_MARGIN`
    away from divisions by zero: by sigma at t = 0 and, with the eps head, by alpha at t = 1.
    """
    if isinstance(path, AbstractDiscretePath):
        return 1.0 / path.steps, 1.0
    assert isinstance(path, AbstractSmoothPath)
    alpha, sigma = levels(path, np.array([path.t_min, path.t_max]))
    low = max(path.t_min, END_MARGIN) if sigma[0] == 0 else path.t_min
    high = min(path.t_max, 1 - END_MARGIN) if alpha[1] == 0 and head == "eps" else path.t_max
    return low, high
