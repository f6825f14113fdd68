"""Checks of the fields of samplers and grids, and the flags that the fields are set by."""

from umd_eqx.core.errors import BadInput


def flag(field: str, name: str) -> str:
    """The flag of a member: `--eval.generation.sampler.steps`, or `--steps` where `field` is empty."""
    return f"{field}.{name}" if field else f"--{name}"


def require_steps(steps: int, field: str) -> None:
    """Raises `BadInput` for fewer steps than one."""
    if steps < 1:
        raise BadInput(flag(field, "steps"), f"{steps} is too few", "Use 1 or more")


def require_levels(sigma_min: float, sigma_max: float, field: str) -> None:
    """Raises `BadInput` for noise levels that do not rise from above 0."""
    if not 0 < sigma_min < sigma_max < float("inf"):
        problem = f"{sigma_min} is not between 0 and {sigma_max}, the largest level"
        raise BadInput(flag(field, "sigma-min"), problem, "Published are 0.002 and 80")
