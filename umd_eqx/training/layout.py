"""Where the arrays of a training state lie: data parallelism, FSDP, tensor parallelism and their products.

A mesh has three axes. Batches are split over `data` and `fsdp`. The large arrays of the state are split over `fsdp` and
`tensor`, and each layer is gathered where it is used, inside the scan over layers: fully sharded data parallelism
(Rajbhandari et al. 2020, ZeRO, stage 3). With `tensor`, heads and the hidden units of an MLP are divided over devices
(Shoeybi et al. 2019, Megatron-LM). XLA's partitioner (GSPMD; Xu et al. 2021) derives all communication.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from umd_eqx.core.errors import BadInput
from umd_eqx.models.vit.attention import Attention
from umd_eqx.models.vit.layers import Linear, SwiGLU
from umd_eqx.models.vit.stack import Stack

SMALLEST = 2**14
"""Arrays with fewer elements than this, such as biases, are copied to every device."""

FSDP_ROWS, FSDP_COLUMNS = "fsdp_rows", "fsdp_columns"
"""The two factors of the axis `fsdp` for an array that is divided along two of its axes."""


class Rule(NamedTuple):
    """How some linear layers are divided over the axis `tensor`.

    - `path`: a regular expression for the end of the layer's path.
    - `side`: whether its inputs or its outputs are divided.
    - `groups`: the number of equal parts of the outputs, each of which is divided.
    """

    path: str
    side: Literal["inputs", "outputs"]
    groups: int = 1


RULES = (
    Rule(r"attention\.qkv", "outputs", groups=3),
    Rule(r"attention\.out", "inputs"),
    Rule(r"mlp\.up", "outputs"),
    Rule(r"mlp\.down", "inputs"),
)
"""Megatron's rules for a transformer block: the first layer is divided by outputs, and the second by inputs."""

STACKED = r"\.blocks\.|\.conditioning\.layers\."
"""The paths of parameters with a leading axis of layers, which is never divided: a scan runs over it."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sharding of each array of a training state, for its initialisation, restoring, training and dry run alike.

    - `mesh`: a mesh of `umd_eqx.core.sharding.make_mesh`.
    - `rules`: what is divided over the axis `tensor`; the first rule that matches a path applies.
    """

    mesh: Mesh
    rules: tuple[Rule, ...] = RULES

    def spec(self, path: str, shape: tuple[int, ...]) -> P:
        """Returns the axes of the mesh that each axis of an array of a state is divided over; see `sharding`."""
        return self.sharding(path, shape).spec

    def sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Returns how an array of a state is stored.

        The largest axis that can be divided evenly over `fsdp` and `tensor` together is divided. The kernel of a layer
        with a rule without groups is divided over `tensor` as in the rule, and over `fsdp` along its other axis. Where
        no axis is a multiple of `fsdp`, two axes of the array are divided, over `FSDP_ROWS` and `FSDP_COLUMNS`: the
        mesh is then one of the same devices with these two in the place of `fsdp`. What cannot be divided over both
        axes of the mesh in any of these ways is divided over one of them.

        **Arguments:** the path of the array, such as `model.encoder.blocks.mlp.up.kernel`, and its shape.
        """
        first = 1 if re.search(STACKED, path) else 0
        spec: list[Any] = [None] * len(shape)
        if math.prod(shape[first:]) < SMALLEST:
            return NamedSharding(self.mesh, P())
        names = [name for name in ("fsdp", "tensor") if self.mesh.shape[name] > 1]
        free = sorted(range(first, len(shape)), key=lambda axis: -shape[axis])
        rule = self._rule(path.removesuffix(".kernel"))
        if rule is not None and rule.groups == 1 and "tensor" in names:
            divided = len(shape) - (1 if rule.side == "outputs" else 2)
            if shape[divided] % self.mesh.shape["tensor"] == 0:
                spec[divided] = names.pop()
                free.remove(divided)
        for some in (names, *([name] for name in names)):
            axis, grid = self._axis(free, shape, some), self._grid(free, shape, some)
            if axis is not None and some:
                spec[axis] = tuple(some)
                break
            if grid is not None:
                spec[grid.rows], spec[grid.columns] = FSDP_ROWS, (FSDP_COLUMNS, *some[1:])
                return NamedSharding(self._finer(), P(*spec))
        return NamedSharding(self.mesh, P(*spec))

    def shardings(self, tree: PyTree) -> PyTree:
        """Returns the `NamedSharding` of each array, or `jax.ShapeDtypeStruct`, of a state; None for other leaves."""

        def sharding(path: Any, leaf: Any) -> NamedSharding | None:
            return self.sharding(_name(path), leaf.shape) if hasattr(leaf, "dtype") else None

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def abstract(self, tree: PyTree) -> PyTree:
        """Returns a state with each array replaced by a `jax.ShapeDtypeStruct` with its sharding."""

        def shape(leaf: Any, sharding: NamedSharding | None) -> Any:
            return leaf if sharding is None else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, tree, self.shardings(tree), is_leaf=lambda leaf: leaf is None)

    def place(self, tree: PyTree) -> PyTree:
        """Places each array of a state as it is stored. Inside `jax.jit`, constrains the sharding of the values."""
        shardings = self.shardings(tree)

        def put(leaf: Any, sharding: NamedSharding | None) -> Any:
            return leaf if sharding is None else eqx.filter_shard(leaf, sharding)

        return jax.tree.map(put, tree, shardings, is_leaf=lambda leaf: leaf is None)

    def computing(self, model: PyTree) -> PyTree:
        """Returns a model whose parameters are gathered over `fsdp` where they are used. Call it inside `jax.jit`.

        Those of a `Stack` are gathered one layer at a time, as the stack runs, and again in the backward pass if it
        rematerialises; all others at once. Without FSDP and tensor parallelism, this is the model itself.
        """
        if self.mesh.shape["fsdp"] == self.mesh.shape["tensor"] == 1:
            return model

        def outside(path: Any, leaf: Any) -> Any:
            return leaf if re.search(STACKED, _name(path)) else self._copied(leaf)

        def hooked(node: Any) -> Any:
            return dataclasses.replace(node, on_layer=self._gathered) if isinstance(node, Stack) else node

        model = jax.tree_util.tree_map_with_path(outside, model)
        return jax.tree.map(hooked, model, is_leaf=lambda node: isinstance(node, Stack))

    def require_divisible(self, model: PyTree) -> None:
        """Raises `BadInput` naming `sharding.tensor` if heads or MLPs cannot be divided over the axis `tensor`."""
        tensor = self.mesh.shape["tensor"]

        def layer(node: Any) -> bool:
            return isinstance(node, Attention | SwiGLU)

        for node in jax.tree.leaves(model, is_leaf=layer):
            if isinstance(node, Attention) and node.heads % tensor:
                fits = ", ".join(str(n) for n in range(1, node.heads + 1) if node.heads % n == 0)
                problem = f"{node.heads} heads cannot be divided evenly over {tensor} devices"
                raise BadInput("sharding.tensor", problem, f"Use one of {fits}")
            if isinstance(node, SwiGLU) and tensor > 1:
                problem = "the two halves of a SwiGLU cannot be divided over devices"
                raise BadInput("sharding.tensor", problem, "Use 1, or `model.block.mlp=gelu`")

    def _gathered(self, layer: PyTree) -> PyTree:
        """Gathers the arrays of one layer over `fsdp`, and those without a rule over `tensor` as well."""

        def gathered(path: Any, node: Any) -> Any:
            rule = self._rule(_name(path))
            if isinstance(node, Linear) and rule is not None and self.mesh.shape["tensor"] > 1:
                return self._divided(node, rule)
            return jax.tree.map(self._copied, node)

        return jax.tree_util.tree_map_with_path(gathered, layer, is_leaf=lambda node: isinstance(node, Linear))

    def _divided(self, linear: Linear, rule: Rule) -> Linear:
        if rule.side == "inputs":
            return Linear(self._constrained(linear.kernel, P("tensor", None)), self._copied(linear.bias))
        if rule.groups == 1:
            return Linear(
                self._constrained(linear.kernel, P(None, "tensor")), self._constrained(linear.bias, P("tensor"))
            )
        # Divided from a full copy: from another division, the partitioner would exchange the groups in pieces.
        kernel = self._copied(linear.kernel).reshape(-1, rule.groups, linear.bias.size // rule.groups)
        bias = linear.bias.reshape(rule.groups, -1)
        kernel, bias = self._constrained(kernel, P(None, None, "tensor")), self._constrained(bias, P(None, "tensor"))
        return _GroupedLinear(kernel.reshape(linear.kernel.shape), bias.reshape(-1), rule.groups)

    def _copied(self, leaf: Any) -> Any:
        return self._constrained(leaf, P()) if eqx.is_array(leaf) else leaf

    def _constrained(self, leaf: Array, spec: P) -> Array:
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec))

    def _parts(self, names: Sequence[str]) -> int:
        return math.prod(self.mesh.shape[name] for name in names)

    def _axis(self, free: Sequence[int], shape: tuple[int, ...], names: Sequence[str]) -> int | None:
        """Returns the first of some axes of an array that can be divided evenly over axes of the mesh."""
        return next((axis for axis in free if shape[axis] % self._parts(names) == 0), None)

    def _grid(self, free: Sequence[int], shape: tuple[int, ...], names: Sequence[str]) -> "_Grid | None":
        """Returns how two axes of an array can be divided over the factors of `fsdp`, the second also over others."""
        rows, columns = self._factors()
        if len(free) != 2 or columns == 1 or "fsdp" not in names:
            return None
        others = self._parts(names) // (rows * columns)
        for one, other in (free, free[::-1]):
            if shape[one] % rows == 0 and shape[other] % (columns * others) == 0:
                return _Grid(one, other)
        return None

    def _factors(self) -> tuple[int, int]:
        """Returns the sizes of `FSDP_ROWS` and `FSDP_COLUMNS`: the factors of `fsdp` that are nearest to each other.

        They are the same for all arrays: with a mesh for each, the partitioner gathers whole stacks of the new state.
        """
        parts = self.mesh.shape["fsdp"]
        rows = next(number for number in range(math.isqrt(parts - 1) + 1, parts + 1) if parts % number == 0)
        return rows, parts // rows

    def _finer(self) -> Mesh:
        data, _, tensor = self.mesh.devices.shape
        axes = ("data", FSDP_ROWS, FSDP_COLUMNS, "tensor")
        devices = self.mesh.devices.reshape(data, *self._factors(), tensor)
        return Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))

    def _rule(self, path: str) -> Rule | None:
        return next((rule for rule in self.rules if re.search(f"{rule.path}$", path)), None)


class _Grid(NamedTuple):
    """The axes of an array that `FSDP_ROWS` and `FSDP_COLUMNS` divide."""

    rows: int
    columns: int


class _GroupedLinear(Linear):
    """A linear layer whose product keeps groups of outputs apart, so that each can be divided over devices."""

    groups: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        kernel, bias = self.kernel.astype(x.dtype), self.bias.astype(x.dtype)
        apart = jnp.tensordot(x, kernel.reshape(len(kernel), self.groups, -1), 1) + bias.reshape(self.groups, -1)
        return apart.reshape(*x.shape[:-1], -1)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
