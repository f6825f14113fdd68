"""Samplers: ODE and SDE solvers of diffrax that turn noise into images along a path, one image at a time."""

from umd_eqx.sampling.base import AbstractSampler as AbstractSampler
from umd_eqx.sampling.batch import sample as sample
from umd_eqx.sampling.config import SAMPLERS as SAMPLERS
from umd_eqx.sampling.config import effective_sampler as effective_sampler
from umd_eqx.sampling.denoisers import AbstractDenoiser as AbstractDenoiser
from umd_eqx.sampling.denoisers import Clipped as Clipped
from umd_eqx.sampling.denoisers import ModelDenoiser as ModelDenoiser
from umd_eqx.sampling.exponential import DDIM as DDIM
from umd_eqx.sampling.exponential import DPMSolverPP as DPMSolverPP
from umd_eqx.sampling.grids import GRIDS as GRIDS
from umd_eqx.sampling.grids import AbstractGrid as AbstractGrid
from umd_eqx.sampling.grids import EDMGrid as EDMGrid
from umd_eqx.sampling.grids import LogSNRGrid as LogSNRGrid
from umd_eqx.sampling.grids import ReferenceGrid as ReferenceGrid
from umd_eqx.sampling.grids import ShiftedGrid as ShiftedGrid
from umd_eqx.sampling.grids import UniformGrid as UniformGrid
from umd_eqx.sampling.guidance import Autoguidance as Autoguidance
from umd_eqx.sampling.guidance import ClassifierFree as ClassifierFree
from umd_eqx.sampling.guidance import Interval as Interval
from umd_eqx.sampling.guidance import guide as guide
from umd_eqx.sampling.mean_flow import MeanFlowSampler as MeanFlowSampler
from umd_eqx.sampling.ode import Adaptive as Adaptive
from umd_eqx.sampling.ode import Euler as Euler
from umd_eqx.sampling.ode import Heun as Heun
from umd_eqx.sampling.sde import ReverseSDE as ReverseSDE
