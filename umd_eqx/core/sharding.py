"""The placement of arrays on devices."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from umd_eqx.core.errors import BadInput

CHUNK_PIXELS = 2**20
"""The default chunk of `chunked_vmap` in pixels per device.

Equal to 16 images of 256 px, which a Stable Diffusion VAE decodes in 3.8 GB of float32.
"""


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of all devices (or the given ones) along one axis, "data"."""
    devices = jax.devices() if devices is None else devices
    # Auto axes: JAX rejects a vmapped step with Explicit axes, its default.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a full copy on every device, used for parameters and optimiser state."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch over the devices along its first axis."""
    return NamedSharding(mesh, P("data"))


def round_up_to_devices(size: int, mesh: Mesh) -> int:
    """Rounds a batch size up to a positive multiple of the number of devices."""
    return -(-max(size, 1) // mesh.size) * mesh.size


def validate_batch(batch_size: int, mesh: Mesh, accumulate: int, period: int) -> None:
    """Raises `BadInput` if a batch cannot be split evenly into micro-batches and over devices.

    `period` is `AbstractObjective.period`: a batch is split only at multiples of it.
    """
    devices, field = mesh.size, "data.batch_size"
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
    devices = mesh.size if size % mesh.size == 0 else 1  # a batch that is not divisible is replicated
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
    return eqx.filter_shard(tree, sharding)
