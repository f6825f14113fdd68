"""The samplers by name, and what becomes of one when it is used."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

from umd_eqx.sampling.base import AbstractSampler
from umd_eqx.sampling.exponential import DDIM, DPMSolverPP
from umd_eqx.sampling.mean_flow import MeanFlowSampler
from umd_eqx.sampling.ode import Adaptive, Euler, Heun
from umd_eqx.sampling.sde import ReverseSDE

Sampler = TypeVar("Sampler", bound=AbstractSampler)

SAMPLERS: Mapping[str, Callable[[], AbstractSampler]] = {
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpmpp": DPMSolverPP,
    "tsit5": functools.partial(Adaptive, method="tsit5"),
    "dopri5": functools.partial(Adaptive, method="dopri5"),
    "sde": ReverseSDE,
    "meanflow": MeanFlowSampler,
}
"""What `--sampler` can name. Values that are fixed here do not come from the sampler that it takes the place of."""


def in_force(sampler: Sampler, *, latents: bool) -> Sampler:
    """The sampler that is used where `sampler` is asked for, and that a result file records.

    Latents (`latents`) have no bounds, so that they are not clipped whatever `clip` says; pixels are as it says.
    """
    return dataclasses.replace(sampler, clip=False) if latents else sampler
