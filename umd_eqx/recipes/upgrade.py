"""Conversion of dumps of older versions of this program to the current types and fields."""

from collections.abc import Callable, Mapping
from typing import Any

from umd_eqx.core.errors import BadInput

Rule = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a dumped value of one type, whose members are already upgraded, and returns it in the current format.

It must leave a value in the current format unchanged.
"""


def _data_config(members: dict[str, Any]) -> dict[str, Any]:
    """Upgrades a `DataConfig` from when TFDS was the only source and its fields were part of `DataConfig`."""
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

# For each sampler by name: its type, its default grid, and its fields in addition to the common ones.
_SAMPLERS = {
    "ddim": ("DDIM", "reference", ("eta",)),
    "dpmpp": ("DPMSolverPP", "logsnr", ()),
    "euler": ("Euler", "uniform", ()),
    "heun": ("Heun", "edm", ()),
    "sde": ("ReverseSDE", "edm", ()),
    "tsit5": ("Adaptive", None, ("rtol", "atol")),
    "dopri5": ("Adaptive", None, ("rtol", "atol")),
}

# Fields that are missing in a dump of `SamplerConfig` had these defaults.
_SAMPLER = {"name": "ddim", "steps": 125, "eta": 1.0, "grid": None, "head": "eps", "clip": True}
_SAMPLER |= {"rtol": 1e-3, "atol": 1e-3}


def _sampler(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrades a `SamplerConfig`, which had a sampler's name, a grid's name and the fields of all samplers."""
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
    raise BadInput("config.json", f"{name!r} is not one of {', '.join(names)}", "Correct the edited file")


RULES: dict[str, Rule] = {
    "DataConfig": _data_config,
    "OptimConfig": lambda data: data | {"type": "AdamW"},
    "SamplerConfig": _sampler,
}
"""The upgrade rule of each type, by the name that an older version wrote under "type"."""


def upgraded(data: Any) -> Any:
    """Converts a dump (`umd_eqx.recipes.dump`) of any version to the current format.

    A user's own types are left unchanged.
    """
    if isinstance(data, list):
        return [upgraded(item) for item in data]
    if not isinstance(data, dict):
        return data
    members = {name: upgraded(item) for name, item in data.items()}
    rule = RULES.get(members["type"]) if isinstance(members.get("type"), str) else None
    return members if rule is None else rule(members)
