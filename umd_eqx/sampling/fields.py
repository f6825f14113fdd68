"""Checks of the fields of samplers and grids."""

from umd_eqx.core.errors import BadInput, member

MOST_STEPS = 100_000
"""The largest number of steps of a sampler."""


def require_steps(steps: int, field: str) -> None:
    """Raises `BadInput` for less than one step, or more than `MOST_STEPS`."""
    if steps < 1:
        raise BadInput(member(field, "steps"), f"{steps} is too few", "Use 1 or more")
    if steps > MOST_STEPS:
        raise BadInput(member(field, "steps"), f"{steps} is too many", f"Use at most {MOST_STEPS:,}")


def require_levels(sigma_min: float, sigma_max: float, field: str) -> None:
    """Raises `BadInput` unless 0 < `sigma_min` < `sigma_max` < infinity."""
    if not 0 < sigma_min < sigma_max < float("inf"):
        problem = f"{sigma_min} is not between 0 and {sigma_max}, the largest level"
        raise BadInput(member(field, "sigma_min"), problem, "Try 0.002 and 80")
