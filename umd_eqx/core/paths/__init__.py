"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 clean and t = 1 noise.

A discrete path is a table of noise levels, as in the reference with its 1000 steps: diffusion index i (0 .. 999) is the
time (i + 1) / 1000, and the reference's "step 0, no noise" is t = 0. A smooth path is a differentiable formula, which
ODE and SDE solvers require. A path holds hyper-parameters only and is therefore its own configuration.
"""

from umd_eqx.core.paths.base import MAX_FINAL_SIGNAL as MAX_FINAL_SIGNAL
from umd_eqx.core.paths.base import NETWORK_STEPS as NETWORK_STEPS
from umd_eqx.core.paths.base import AbstractPath as AbstractPath
from umd_eqx.core.paths.base import Clean as Clean
from umd_eqx.core.paths.continuous import AbstractSmoothPath as AbstractSmoothPath
from umd_eqx.core.paths.continuous import CosinePath as CosinePath
from umd_eqx.core.paths.continuous import RectifiedFlow as RectifiedFlow
from umd_eqx.core.paths.continuous import SmoothTable as SmoothTable
from umd_eqx.core.paths.continuous import smooth as smooth
from umd_eqx.core.paths.discrete import AbstractDiscretePath as AbstractDiscretePath
from umd_eqx.core.paths.discrete import CosineTable as CosineTable
from umd_eqx.core.paths.discrete import LinearTable as LinearTable
