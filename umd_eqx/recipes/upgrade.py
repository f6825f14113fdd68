"""Dumps that older versions of this program wrote, brought to the types and fields of today."""

from collections.abc import Callable, Mapping
from typing import Any

from umd_eqx.core.errors import BadInput

Rule = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a dumped value of one type, its members upgraded already, and returns it as it is dumped today.

It must leave a value of today as it is.
"""


def _data_config(members: dict[str, Any]) -> dict[str, Any]:
    """TFDS was the only source, and its fields were those of `DataConfig` itself."""
    if "source" in members:
        return members
    moved = {name: members[name] for name in ("name", "dir") if name in members}
    return {name: value for name, value in members.items() if name not in moved} | {"source": {"type": "TFDS"} | moved}


_GRIDS = {
    "reference": "ReferenceGrid",
    "uniform": "UniformGrid",
    "edm": "EDMGrid",
    "logsnr": "LogSNRGrid",
    "shifted": "ShiftedGrid",
}

# Of each sampler by its name: type, the grid where none was given, and its fields beside those that all have.
_SAMPLERS = {
    "ddim": ("DDIM", "reference", ("eta",)),
    "dpmpp": ("DPMSolverPP", "logsnr", ()),
    "euler": ("Euler", "uniform", ()),
    "heun": ("Heun", "edm", ()),
    "sde": ("ReverseSDE", "edm", ()),
    "tsit5": ("Adaptive", None, ("rtol", "atol")),
    "dopri5": ("Adaptive", None, ("rtol", "atol")),
}

# A field that a dump of `SamplerConfig` does not have was at its default.
_SAMPLER = {"name": "ddim", "steps": 125, "eta": 1.0, "grid": None, "head": "eps", "clip": True}
_SAMPLER |= {"rtol": 1e-3, "atol": 1e-3}


def _sampler(data: dict[str, Any]) -> dict[str, Any]:
    """`SamplerConfig` named a sampler and a grid, and had the fields of all samplers."""
    old = _SAMPLER | data
    kind, usual, own = _SAMPLERS[_one_of(_SAMPLERS, old["name"])]
    new = {name: old[name] for name in ("steps", *own, "head", "clip")}
    if usual is None:
        return {"type": kind, "method": old["name"]} | new
    grid = usual if old["grid"] is None else old["grid"]
    return {"type": kind, "grid": {"type": _GRIDS[_one_of(_GRIDS, grid)]}} | new


def _one_of(names: Mapping[str, Any], name: Any) -> str:
    if isinstance(name, str) and name in names:
        return name
    raise BadInput("config.json", f"{name!r} is not one of {', '.join(names)}", "It was changed by hand: mend it")


RULES: dict[str, Rule] = {
    "DataConfig": _data_config,
    "OptimConfig": lambda data: data | {"type": "AdamW"},
    "SamplerConfig": _sampler,
}
"""By the name that an older version wrote under "type"."""


def upgraded(data: Any) -> Any:
    """A dump (`umd_eqx.recipes.dump`) of any version as one of today. A reader's own types are left as they are."""
    if isinstance(data, list):
        return [upgraded(item) for item in data]
    if not isinstance(data, dict):
        return data
    members = {name: upgraded(item) for name, item in data.items()}
    rule = RULES.get(members["type"]) if isinstance(members.get("type"), str) else None
    return members if rule is None else rule(members)
