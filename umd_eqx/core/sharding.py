"""The placement of arrays on devices."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from umd_eqx.core.errors import BadInput
from umd_eqx.core.processes import to_devices

CHUNK_PIXELS = 2**20
"""The default chunk of `chunked_vmap` in pixels per device.

Equal to 16 images of 256 px, which a Stable Diffusion VAE decodes in 3.8 GB of float32.
"""


AXES = ("data", "fsdp", "tensor")
"""The axes of a mesh; see `umd_eqx.training.layout`."""


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """How training is divided over devices. It does not change the result of a run beyond rounding."""

    data: int | None = None
    """Number of parts of a batch whose devices hold a state each. None: all devices that fsdp and tensor leave."""
    fsdp: int = 1
    """Number of devices that share each state, and a part of the batch: fully sharded data parallelism."""
    tensor: int = 1
    """Number of devices that share the heads and MLPs of a transformer block: tensor parallelism."""


def make_mesh(devices: Sequence[Any] | None = None, sharding: ShardingConfig | None = None) -> Mesh:
    """Returns a mesh of all devices, or the given ones, with the axes `AXES`.

    `sharding` are the sizes of its axes; by default, all devices are on the axis `data`. Raises `BadInput` naming a
    field of `sharding` if the devices cannot be divided so.
    """
    devices = jax.devices() if devices is None else devices
    sharding, count = ShardingConfig() if sharding is None else sharding, len(devices)
    data, fsdp, tensor = dataclasses.astuple(sharding)
    for name, value in (("data", data), ("fsdp", fsdp), ("tensor", tensor)):
        if value is not None and value < 1:
            raise BadInput(f"sharding.{name}", f"{value} is too small", "Use 1 or more")
    if count % (fsdp * tensor):
        problem = f"{fsdp} x {tensor} (`sharding.tensor`) does not divide {count} devices"
        raise BadInput("sharding.fsdp", problem, f"Use numbers whose product divides {count}")
    left = count // (fsdp * tensor)
    if data is not None and data != left:
        problem = f"{data} x {fsdp} x {tensor} is not the number of devices, {count}"
        raise BadInput("sharding.data", problem, f"Use {left}, or omit it")
    # Auto axes: JAX rejects a vmapped step with Explicit axes, its default.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((left, fsdp, tensor), AXES, axis_types=types, devices=devices)


def describe_mesh(mesh: Mesh) -> str:
    """Returns the number and kind of the devices, and the axes of the mesh if it has others than `data`."""
    text = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return text if mesh.shape["data"] == mesh.size else f"{text} ({axes})"


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a full copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch over the devices along its first axis."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def batch_parts(mesh: Mesh) -> int:
    """Returns the number of parts into which a batch is divided: the devices, unless some share their images."""
    return mesh.size // mesh.shape["tensor"]


def round_up_to_devices(size: int, mesh: Mesh) -> int:
    """Rounds a batch size up to a positive multiple of the number of its parts."""
    return -(-max(size, 1) // batch_parts(mesh)) * batch_parts(mesh)


def validate_batch(batch_size: int, mesh: Mesh, accumulate: int, period: int) -> None:
    """Raises `BadInput` if a batch cannot be split evenly into micro-batches and over devices.

    `period` is `AbstractObjective.period`: a batch is split only at multiples of it.
    """
    devices, field = batch_parts(mesh), "data.batch_size"
    if batch_size < 1:
        raise BadInput(field, f"{batch_size} is not a valid batch size", "Use 1 or more")
    if batch_size % devices:
        nearest = max(1, round(batch_size / devices)) * devices
        problem = f"{batch_size} cannot be divided evenly over {devices} devices"
        raise BadInput(field, problem, f"Use {nearest}, for example")
    pieces = batch_size // period
    if pieces == 1 < accumulate:
        problem = f"the objective needs a batch of {batch_size} images as a whole, not in {accumulate} micro-batches"
        raise BadInput("optim.accumulate", problem, "Use 1")
    if pieces % accumulate or (batch_size // accumulate) % devices:
        fits = [n for n in range(1, min(pieces, 64) + 1) if pieces % n == 0]
        allowed = [n for n in fits if (batch_size // n) % devices == 0]
        raise BadInput(
            "optim.accumulate",
            f"a batch of {batch_size} on {devices} devices cannot be split into {accumulate} equal micro-batches",
            f"Use one of {', '.join(map(str, allowed))}",
        )


def micro_batches(tree: PyTree, accumulate: int, period: int) -> PyTree:
    """Splits each array (b, ...) into micro-batches (accumulate, b / accumulate, ...).

    Micro-batch j consists of every `accumulate`-th period, starting with the j-th, and so has the same composition as
    the whole batch. Each image stays on its device if the number of periods on each device is a multiple of
    `accumulate`.
    """

    def cut(leaf: Array) -> Array:
        grid = leaf.reshape(-1, accumulate, period, *leaf.shape[1:])
        return grid.swapaxes(0, 1).reshape(accumulate, -1, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def chunked_vmap(
    function: Callable[[Any], PyTree], batch: PyTree, mesh: Mesh, *, pixels: int | None = None, factor: int = 1
) -> PyTree:
    """Computes `jax.vmap(function)(batch)` in chunks of bounded size on each device. Call it inside `jax.jit`.

    If the images of each device fit into one chunk, this is exactly that `jax.vmap`.

    **Arguments:**

    - `function`: maps one entry of the batch, a PyTree without the leading axis, to a PyTree of arrays.
    - `batch`: a PyTree of arrays (b, ...), such as images (b, h, w, c) or `(images, keys)`, with at least one array of
      images or latents. Arrays that are sharded over the devices of `mesh` remain so: each image stays on its device.
    - `mesh`: the devices that share the batch.
    - `pixels`: the largest chunk on a device in pixels, by default `CHUNK_PIXELS`; a chunk has at least one image.
      The pixels of the largest array (b, h, w, c) in the batch are counted.
    - `factor`: the number of pixels per position of that array along each side: more than 1 for latents.

    **Returns:** the result of that `jax.vmap`, up to rounding.
    """
    leaves = jax.tree.leaves(batch)
    size, largest = len(leaves[0]), max(math.prod(leaf.shape[1:3]) for leaf in leaves if leaf.ndim == 4)
    most = max((CHUNK_PIXELS if pixels is None else pixels) // (largest * factor**2), 1)
    devices = batch_parts(mesh) if size % batch_parts(mesh) == 0 else 1  # a batch that is not divisible is replicated
    share = size // devices
    period = max(n for n in range(1, min(share, most) + 1) if share % n == 0) if share else 1
    pieces = share // period
    if pieces <= 1:
        return jax.vmap(function)(batch)

    def joined(leaf: Array) -> Array:
        grid = leaf.reshape(pieces, devices, period, *leaf.shape[2:])
        return grid.swapaxes(0, 1).reshape(size, *leaf.shape[2:])

    return jax.tree.map(joined, jax.lax.map(jax.vmap(function), micro_batches(batch, pieces, period)))


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Places every array of a PyTree according to the sharding."""
    if sharding.is_fully_addressable:
        return eqx.filter_shard(tree, sharding)
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(to_devices(arrays, sharding), static)


def on_mesh(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every array of a PyTree to all devices, except those that lie on the devices of `mesh` already."""
    devices = set(mesh.devices.flat)

    def put(leaf: Any) -> Any:
        there = isinstance(getattr(leaf, "sharding", None), NamedSharding) and leaf.sharding.device_set == devices
        return leaf if there else place(leaf, replicated(mesh))

    return jax.tree.map(put, tree)
