"""A sampler by name and numbers, for the command line and for recipes."""

import dataclasses
from typing import Literal

from umd_eqx.errors import BadInput
from umd_eqx.predictions import Head
from umd_eqx.sampling.base import AbstractSampler
from umd_eqx.sampling.exponential import DDIM, DPMSolverPP
from umd_eqx.sampling.grids import AbstractGrid, EDMGrid, LogSNRGrid, ReferenceGrid, ShiftedGrid, UniformGrid
from umd_eqx.sampling.ode import Adaptive, Euler, Heun
from umd_eqx.sampling.sde import ReverseSDE

SamplerName = Literal["ddim", "euler", "heun", "dpmpp", "tsit5", "dopri5", "sde"]
GridName = Literal["reference", "uniform", "edm", "logsnr", "shifted"]

_GRIDS: dict[GridName, AbstractGrid] = {
    "reference": ReferenceGrid(),
    "uniform": UniformGrid(),
    "edm": EDMGrid(),
    "logsnr": LogSNRGrid(),
    "shifted": ShiftedGrid(),
}
_USUAL: dict[SamplerName, GridName] = {
    "ddim": "reference",
    "euler": "uniform",
    "heun": "edm",
    "dpmpp": "logsnr",
    "sde": "edm",
}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How noise becomes an image."""

    name: SamplerName = "ddim"
    """The sampler. tsit5 and dopri5 choose their steps themselves."""
    steps: int = 125
    """Steps; heun asks the network twice in each."""
    eta: float = 1.0
    """Of ddim: 0 is deterministic, 1 adds as much noise as ancestral sampling (as published)."""
    grid: GridName | None = None
    """Where the steps lie. None: the reference's for ddim, EDM's for heun and sde, evenly in the log-SNR for dpmpp and
    evenly in t for euler."""
    head: Head = "eps"
    """Which output of the network is believed."""
    clip: bool = True
    """Keep each predicted clean image in [-1, 1] where pixels are sampled, as published. Latents are never clipped."""
    rtol: float = 1e-3
    """Relative tolerance of tsit5 and dopri5."""
    atol: float = 1e-3
    """Absolute tolerance of tsit5 and dopri5."""

    @property
    def needs_rates(self) -> bool:
        """Whether the sampler asks for a smooth path."""
        return self.name not in ("ddim", "dpmpp")

    def validate(self, field: str = "") -> None:
        """Raises `BadInput` for the first number that cannot work; `field` is the flag without its last part."""
        prefix = f"{field}." if field else "--"
        if self.steps < 1:
            raise BadInput(f"{prefix}steps", f"{self.steps} is too few", "Use 1 or more")
        if not 0 <= self.eta <= 1:
            raise BadInput(f"{prefix}eta", f"{self.eta} is outside [0, 1]", "0 adds no noise, 1 as much as published")
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                problem = f"{getattr(self, name)} is outside (0, 1)"
                raise BadInput(f"{prefix}{name}", problem, "Use a small number such as 1e-3")

    def in_force(self, *, latents: bool) -> "SamplerConfig":
        """The configuration with everything settled that follows from what is sampled: what a result file records.

        Latents (`latents`) have no bounds, so that they are not clipped whatever `clip` says; pixels are as it says.
        `grid` is the sampler's usual one where it was None, and stays None for tsit5 and dopri5, which have none.
        """
        grid = (self.grid or _USUAL[self.name]) if self.name in _USUAL else None
        return dataclasses.replace(self, clip=self.clip and not latents, grid=grid)

    def build(self, *, latents: bool) -> AbstractSampler:
        """The sampler itself, for `latents` or for pixels in [-1, 1]. Raises `BadInput` as `validate` does."""
        self.validate()
        config = self.in_force(latents=latents)
        if self.name in ("tsit5", "dopri5"):
            tolerances = {"rtol": self.rtol, "atol": self.atol}
            return Adaptive(method=self.name, **tolerances, shown=self.steps, head=self.head, clip=config.clip)
        assert config.grid is not None
        common = {"steps": self.steps, "grid": _GRIDS[config.grid], "head": self.head, "clip": config.clip}
        match self.name:
            case "ddim":
                return DDIM(eta=self.eta, **common)
            case "dpmpp":
                return DPMSolverPP(**common)
            case "euler":
                return Euler(**common)
            case "heun":
                return Heun(**common)
            case "sde":
                return ReverseSDE(**common)
