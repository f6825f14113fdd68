"""Checks of the fields of samplers and grids, and the command-line flags of these fields."""

from umd_eqx.core.errors import BadInput


def flag(field: str, name: str) -> str:
    """Returns the flag of a field: `--eval.generation.sampler.steps`, or `--steps` if `field` is empty."""
    return f"{field}.{name}" if field else f"--{name}"


def require_steps(steps: int, field: str) -> None:
    """Raises `BadInput` for less than one step."""
    if steps < 1:
        raise BadInput(flag(field, "steps"), f"{steps} is too few", "Use 1 or more")


def require_levels(sigma_min: float, sigma_max: float, field: str) -> None:
    """Raises `BadInput` unless 0 < `sigma_min` < `sigma_max` < infinity."""
    if not 0 < sigma_min < sigma_max < float("inf"):
        problem = f"{sigma_min} is not between 0 and {sigma_max}, the largest level"
        raise BadInput(flag(field, "sigma-min"), problem, "Try 0.002 and 80")
