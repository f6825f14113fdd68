"""The faults of `python -m tests.faults`, one module for each row of its table."""

import importlib

from faults.suite.base import Fault

MODULES = (
    "kills",
    "save_kills",
    "signals",
    "damage",
    "disks",
    "nonfinite",
    "processes",
    "reshard",
    "changed",
    "configurations",
    "hostile",
    "wandb_away",
    "memory",
)
"""The modules of this folder with a `FAULT`, in the order of the table."""


def all_faults() -> list[Fault]:
    """Returns the faults. Their modules are imported here, so that the processes of trials import only one of them."""
    return [importlib.import_module(f"{__name__}.{name}").FAULT for name in MODULES]
