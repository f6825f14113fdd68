"""Selection of the trained parameters of a model by their dotted names."""

import abc
import dataclasses
import difflib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class AbstractTrainable(abc.ABC):
    """Selects the parameters that are trained.

    A parameter is a floating-point array of the model, and its name is its path, such as `encoder.blocks.norm1.scale`.
    Layers that are stacked into one array are trained or frozen together.
    """

    @abc.abstractmethod
    def __call__(self, model: PyTree) -> PyTree:
        """Returns a filter specification for `eqx.partition`.

        **Arguments:**

        - `model`: any PyTree of arrays, of shapes (`jax.ShapeDtypeStruct`) or of tracers.

        **Returns:** a PyTree with the structure of the model and a bool for each leaf, True if it is trained. It
        depends on the structure of the model alone, and is False for every leaf that is not a floating-point array.

        **Raises:** `BadInput` if the selection does not fit the model.
        """


@dataclasses.dataclass(frozen=True)
class AllExcept(AbstractTrainable):
    """Trains all parameters except those with the given names or prefixes."""

    frozen: tuple[str, ...] = ()
    """Parameters to freeze at their initial values: names, or dotted prefixes of names, such as encoder."""

    def __call__(self, model: PyTree) -> PyTree:
        """See `AbstractTrainable`. Raises `BadInput` if a prefix matches no parameter, or all are frozen."""
        names = parameter_names(model)
        frozen = _selected(names, self.frozen, "trainable.frozen")
        if len(frozen) == len(names):
            raise BadInput("trainable.frozen", "every parameter is frozen", "Freeze fewer of them")
        return _specification(model, set(names) - frozen)


@dataclasses.dataclass(frozen=True)
class Only(AbstractTrainable):
    """Trains only the parameters with the given names or prefixes."""

    trained: tuple[str, ...]
    """Parameters to train: names, or dotted prefixes of names, such as head."""

    def __call__(self, model: PyTree) -> PyTree:
        """See `AbstractTrainable`. Raises `BadInput` if a prefix matches no parameter, or none is given."""
        if not self.trained:
            raise BadInput("trainable.trained", "no parameter is given", "Give at least one name or prefix")
        return _specification(model, _selected(parameter_names(model), self.trained, "trainable.trained"))


EVERYTHING = AllExcept()
"""Trains every parameter."""


def parameter_names(model: PyTree) -> list[str]:
    """Returns the dotted names of the parameters of a model, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return [_name(path) for path, leaf in leaves if _is_parameter(leaf)]


def _selected(names: list[str], prefixes: tuple[str, ...], field: str) -> set[str]:
    found: set[str] = set()
    for prefix in prefixes:
        under = {name for name in names if name == prefix or name.startswith(f"{prefix}.")}
        if not under:
            known = list(dict.fromkeys(name.partition(".")[0] for name in names))
            prefixes_of_names = {
                ".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)
            }
            close = difflib.get_close_matches(prefix, sorted(prefixes_of_names), n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise BadInput(
                field, f"no parameter's name begins with {prefix!r}", f"{hint}Choose one of: {', '.join(known)}"
            )
        found |= under
    return found


def _specification(model: PyTree, trained: set[str]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _is_parameter(leaf) and _name(path) in trained, model)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_parameter(leaf: Any) -> bool:
    # Unlike `eqx.is_inexact_array`, this is also True for a `jax.ShapeDtypeStruct`.
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
