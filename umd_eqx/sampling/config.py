"""The samplers by name, and the settings with which a sampler is used."""

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
"""The values of `--sampler`. Fields that are fixed here are not copied from the sampler that is replaced."""


def effective_sampler(sampler: Sampler, *, latents: bool) -> Sampler:
    """Returns the sampler that is used, and recorded in result files, when `sampler` is configured.

    With `latents`, clipping is disabled whatever the value of `clip`, because latents are unbounded.
    """
    return dataclasses.replace(sampler, clip=False) if latents else sampler
