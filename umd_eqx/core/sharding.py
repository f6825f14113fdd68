"""One file of rules: which array lies where on the devices."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from umd_eqx.core.errors import BadInput

PIXELS_AT_ONCE = 2**20
"""On a device, in `chunked_vmap`: 16 images of 256 px, which a Stable Diffusion VAE decodes in 3.8 GB of float32."""


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (or the given ones) along one axis, "data"."""
    devices = jax.devices() if devices is None else devices
    # Auto axes: with Explicit ones, jax's default, a vmapped step is refused.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: parameters, optimiser state."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Images shared out over the devices along their first axis."""
    return NamedSharding(mesh, P("data"))


def round_up_to_devices(size: int, mesh: Mesh) -> int:
    """The smallest batch of `size` images or more, 1 at least, that the devices can share."""
    return -(-max(size, 1) // mesh.size) * mesh.size


def validate_batch(batch_size: int, mesh: Mesh, accumulate: int, period: int) -> None:
    """Raises `BadInput` if a batch cannot be cut over devices and micro-batches.

    `period` is `AbstractObjective.period`: a batch is cut only where one ends.
    """
    devices, flag = mesh.size, "--data.batch-size"
    if batch_size < 1:
        raise BadInput(flag, f"{batch_size} is no batch", "Use 1 or more")
    if batch_size % devices:
        nearest = max(1, round(batch_size / devices)) * devices
        raise BadInput(flag, f"{batch_size} does not divide over {devices} devices", f"Use {nearest}, for example")
    pieces = batch_size // period
    if pieces % accumulate or (batch_size // accumulate) % devices:
        fits = [n for n in range(1, min(pieces, 64) + 1) if pieces % n == 0]
        allowed = [n for n in fits if (batch_size // n) % devices == 0]
        raise BadInput(
            "--optim.accumulate",
            f"{accumulate} micro-batches cannot all be alike in a batch of {batch_size} over {devices} devices",
            f"Use one of {', '.join(map(str, allowed))}",
        )


def micro_batches(tree: PyTree, accumulate: int, period: int) -> PyTree:
    """Cuts each array (b, ...) into (accumulate, b / accumulate, ...) such that no image changes its
    device where a device's share of the batch holds a whole number of periods for each.

    Micro-batch j takes every `accumulate`-th period, beginning with the j-th, so that each holds what the whole holds.
    """

    def cut(leaf: Array) -> Array:
        grid = leaf.reshape(-1, accumulate, period, *leaf.shape[1:])
        return grid.swapaxes(0, 1).reshape(accumulate, -1, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def chunked_vmap(
    function: Callable[[Any], PyTree], batch: PyTree, mesh: Mesh, *, pixels: int | None = None, factor: int = 1
) -> PyTree:
    """`jax.vmap(function)(batch)` with a bounded number of images at once on each device. Call it inside `jax.jit`.

    Where all images of a device are within the bound, it is that `jax.vmap`, and nothing else.

    **Arguments:**

    - `function`: maps one entry of the batch, a PyTree without the leading axis, to a PyTree of arrays.
    - `batch`: a PyTree of arrays (b, ...), such as images (b, h, w, c) or `(images, keys)`, with at least one array of
      images or latents. Arrays that are shared out over the devices of `mesh` stay so: each image stays on its device.
    - `pixels`: the most pixels that a device maps at once, `PIXELS_AT_ONCE` if not given; one image at least. The
      largest array (b, h, w, c) of the batch counts.
    - `factor`: pixels along a side for one place of that array: more than 1 for latents.

    **Returns:** what `jax.vmap` would return, up to rounding.
    """
    leaves = jax.tree.leaves(batch)
    size, largest = len(leaves[0]), max(math.prod(leaf.shape[1:3]) for leaf in leaves if leaf.ndim == 4)
    most = max((PIXELS_AT_ONCE if pixels is None else pixels) // (largest * factor**2), 1)
    devices = mesh.size if size % mesh.size == 0 else 1  # a batch that they cannot share lies on each of them
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
    """Puts every array of a PyTree where the sharding says."""
    return eqx.filter_shard(tree, sharding)
