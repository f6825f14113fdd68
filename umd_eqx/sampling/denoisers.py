"""What a sampler asks: the clean image and the noise in x_t, by a network along a path."""

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

SAFE_END = 1e-3
"""How far from an end of [0, 1] a sampler stays where the path divides by zero there."""

Ends = tuple[float, float]
"""(last, first) time at which a sampler asks: the ends of a path, as far as nothing divides by zero."""


class AbstractDenoiser(eqx.Module):
    """A function of (x_t, t), t in (0, 1], whose clean image and noise agree with x_t.

    It has been told everything else: `given` tells it another label. A denoiser may be made of denoisers, as guidance
    is (`umd_eqx.sampling.guidance`), without being a network.
    """

    @property
    @abc.abstractmethod
    def model(self) -> AbstractModel:
        """The network whose kind of images it denoises."""

    @property
    @abc.abstractmethod
    def path(self) -> AbstractPath:
        """The path of the noised images."""

    @property
    @abc.abstractmethod
    def cond(self) -> AbstractCond:
        """What the network is told."""

    @property
    @abc.abstractmethod
    def ends(self) -> Ends:
        """The times between which a sampler may ask."""

    @abc.abstractmethod
    def given(self, cond: AbstractCond) -> "AbstractDenoiser":
        """The same, told something else."""

    @abc.abstractmethod
    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """The clean image and the noise."""


class ModelDenoiser(AbstractDenoiser):
    """A network along a path.

    **Arguments:**

    - `network`: the network; `along`: the path, which is the one that it was trained on, or smooth through its levels.
    - `told`: what it is told. None: nothing but the time.
    - `head`: which output decides where the network has two: "eps" the noise (as the reference samples), "x0" the clean
        image, "v" both through the path's v. The other types of prediction have one, which decides.
    """

    network: AbstractModel
    along: AbstractPath
    told: AbstractCond
    head: Head = eqx.field(static=True)

    def __init__(
        self, network: AbstractModel, along: AbstractPath, told: AbstractCond | None = None, *, head: Head = "v"
    ):
        self.network, self.along, self.head = network, along, head
        self.told = network.cond() if told is None else told

    @property
    def model(self) -> AbstractModel:
        """The network."""
        return self.network

    @property
    def path(self) -> AbstractPath:
        """The path."""
        return self.along

    @property
    def cond(self) -> AbstractCond:
        """What the network is told."""
        return self.told

    @property
    def ends(self) -> Ends:
        """`end_times` of the path."""
        return end_times(self.along, self.head if self.network.prediction == "x0_eps" else "v")

    def given(self, cond: AbstractCond) -> "ModelDenoiser":
        """The same network, told something else."""
        return ModelDenoiser(self.network, self.along, cond, head=self.head)

    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """The prediction of the network, read by `head`."""
        prediction = self.network(x_t, self.told.at(self.along.network_time(t)))
        return prediction.denoised(self.head, self.along, x_t, t)

    def average_velocity(self, x_t: Image, r: Time, t: Time) -> Image:
        """u of x_t over the interval from r to t, 0 <= r <= t: x_r = x_t - (t - r) u (MeanFlow, eq. 3).

        Raises `BadInput` naming `--sampler` for a network that predicts anything else.
        """
        if not isinstance(self.told, IntervalCond):
            problem = f"the network predicts {self.network.prediction} and no average velocity"
            raise BadInput("--sampler", problem, "Train one with the meanflow preset, or take another sampler")
        times = (self.along.network_time(time) for time in (t, r))
        prediction = self.network(x_t, self.told.at(*times))
        assert isinstance(prediction, VPrediction)
        return prediction.v


class Clipped(AbstractDenoiser):
    """A denoiser whose clean image is kept in [-1, 1], and whose noise is computed anew from it.

    As the reference does in pixels: it divides by sigma(t).
    """

    denoiser: AbstractDenoiser

    @property
    def model(self) -> AbstractModel:
        """The denoiser's."""
        return self.denoiser.model

    @property
    def path(self) -> AbstractPath:
        """The denoiser's."""
        return self.denoiser.path

    @property
    def cond(self) -> AbstractCond:
        """The denoiser's."""
        return self.denoiser.cond

    @property
    def ends(self) -> Ends:
        """The denoiser's."""
        return self.denoiser.ends

    def given(self, cond: AbstractCond) -> "Clipped":
        """The same, told something else."""
        return Clipped(self.denoiser.given(cond))

    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """The clipped image and its noise."""
        x0 = jnp.clip(self.denoiser(x_t, t).x0, -1.0, 1.0)
        return Denoised(x0, self.path.eps_from_x0(x_t, x0, t))


def end_times(path: AbstractPath, head: Head) -> Ends:
    """(last, first) time at which a sampler asks a network whose output `head` decides.

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
