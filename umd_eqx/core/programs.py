"""Programs described by shapes alone, whose memory use can be determined before any array is allocated."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax.sharding import Sharding
from jaxtyping import PyTree

FAST_COMPILATION: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
"""Options of the CPU compiler for a program that is not run, which halve the compile time for the same buffers."""


class Memory(NamedTuple):
    """Bytes of memory that a compiled program uses on each device."""

    arguments: int
    temporaries: int
    outputs: int
    """Excluding outputs that reuse the buffer of a donated argument."""

    @property
    def total(self) -> int:
        """The sum of all three, which is allocated while the program runs."""
        return self.arguments + self.temporaries + self.outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function and the shapes of its arguments.

    **Arguments:**

    - `function`: the function as called in a run, compiled or not.
    - `arguments`: PyTrees in which each array is a `jax.ShapeDtypeStruct`, with its sharding if it has one
        (see `abstract`). Everything else is static.
    - `donated`: the indices of the arguments that are donated to the outputs.
    """

    function: Callable[..., PyTree]
    arguments: tuple[PyTree, ...]
    donated: tuple[int, ...] = ()

    def lower(self) -> jax.stages.Lowered:
        """Lowers the program for compilation. Only its constants are allocated."""
        shapes, static = eqx.partition(self.arguments, is_shape)

        def call(*arrays: PyTree) -> PyTree:
            return eqx.filter(self.function(*eqx.combine(arrays, static)), eqx.is_array)

        return jax.jit(call, donate_argnums=self.donated).lower(*shapes)

    def memory(self) -> Memory:
        """Compiles the program for the available devices and returns its memory use. Nothing is run."""
        return compiled_memory(self.lower())


def compiled_memory(lowered: jax.stages.Lowered) -> Memory:
    """Compiles a lowered program and returns its memory use on each available device. Nothing is run."""
    options = FAST_COMPILATION if jax.default_backend() == "cpu" else None
    found: Any = lowered.compile(compiler_options=options).memory_analysis()
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, kept)


def abstract(tree: PyTree, sharding: Sharding | None = None) -> PyTree:
    """Returns a PyTree with each array or `jax.ShapeDtypeStruct` replaced by a `jax.ShapeDtypeStruct`.

    Without a sharding, the compiler chooses one.
    """

    def shape(leaf: Any) -> Any:
        if not (eqx.is_array(leaf) or is_shape(leaf)):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)


def is_shape(leaf: Any) -> bool:
    """Whether a leaf of a PyTree is a `jax.ShapeDtypeStruct`, which represents an array by its shape."""
    return isinstance(leaf, jax.ShapeDtypeStruct)
