"""Upper bounds of the numbers in a configuration: above them, arrays do not fit and 32-bit counters overflow."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from umd_eqx.core.errors import BadInput, member

MOST_INTEGER = 2**31 - 1
"""The largest integer in a configuration: steps and indices are 32-bit integers on a device."""

MOST_FLOAT = 1e9
"""The largest absolute value of a float in a configuration. Squares and sums of such numbers are finite in float32."""

MOST = {"size": 2**14, "workers": 256, "accumulate": 2**20, "steps": 10**9}
"""Smaller bounds of integers, by the last part of the name of a field."""

UNBOUNDED = frozenset({"seed"})
"""Integers with bounds of their own."""


def require_bounded_integers(tree: Any, field: str = "") -> None:
    """Raises `BadInput` naming the first integer of a configuration that is too large, or too far below 0.

    **Arguments:**

    - `tree`: a dataclass, or a mapping or sequence of them; anything else in it is left alone.
    - `field`: its dotted name.
    """
    for name, value in _numbers(tree, field):
        last = name.rpartition(".")[2]
        most = MOST.get(last, MOST_INTEGER)
        if isinstance(value, int) and last not in UNBOUNDED and abs(value) > most:
            raise BadInput(name, f"{_shown(value)} is too large", f"Use at most {most:,}")


def require_bounded_floats(tree: Any, field: str = "") -> None:
    """Raises `BadInput` naming the first float that is not a number, or too large; see `require_bounded_integers`."""
    for name, value in _numbers(tree, field):
        if isinstance(value, float) and math.isnan(value):
            raise BadInput(name, "nan is not a number", "Give a number")
        if isinstance(value, float) and MOST_FLOAT < abs(value) < math.inf:
            raise BadInput(name, f"{value:g} is too large", f"Use at most {MOST_FLOAT:g}")


def _numbers(tree: Any, field: str) -> Iterator[tuple[str, int | float]]:
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        yield field, tree
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for each in dataclasses.fields(tree):
            yield from _numbers(getattr(tree, each.name, None), member(field, each.name))
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _numbers(value, member(field, str(name)))
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from _numbers(value, field)


def _shown(value: int) -> str:
    return str(value) if abs(value) < 10**20 else f"a number of {value.bit_length()} bits"
