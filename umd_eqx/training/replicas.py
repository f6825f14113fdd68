"""Copies of the parameters on several devices, which must be equal bit for bit.

They are computed from the same numbers in the same order. Where they differ, a device or its memory is faulty, or a
process has trained on something else; from then on, every step would mix two networks.
"""

import collections
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped, UInt32

from umd_eqx.core.errors import BadInput
from umd_eqx.core.processes import to_first

Digests = dict[str, dict[str, int]]
"""The digest of a part of an array on each device that holds it, by the name of the array with the slice, and device.

It is the sum of the bits of all numbers as unsigned integers, modulo 2^32: no single difference leaves it as it is.
"""


def require_equal_replicas(step: int, tree: PyTree) -> None:
    """Compares the copies of all arrays on all devices of all processes. Every process must call this.

    Parts of arrays that lie on one device alone are not looked at.

    **Arguments:**

    - `step`: the number of the step, another in each call.
    - `tree`: a PyTree of arrays on the devices.

    **Raises:** `BadInput` in every process, naming the array and the devices, if two copies differ.
    """

    def verdict(digests: list[Digests]) -> None:
        if found := first_difference(digests):
            name, devices = found
            problem = f"at step {step}, {name} on {devices} is not what it is on the other devices"
            hint = "The checkpoints are of earlier steps: run the same command again without the faulty device"
            raise BadInput("sharding", problem, hint)

    to_first(f"replicas/{step}", digests_of(tree), verdict)


def digests_of(tree: PyTree) -> Digests:
    """Returns the digests of all parts of arrays that two or more devices hold, on the devices of this process."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    found: dict[str, dict[str, Array]] = {}
    for path, leaf in leaves:
        if not isinstance(leaf, jax.Array) or leaf.sharding.num_devices == 1:
            continue
        holders = collections.Counter(map(str, leaf.sharding.devices_indices_map(leaf.shape).values()))
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for shard in leaf.addressable_shards:
            if holders[str(shard.index)] > 1:
                found.setdefault(f"{name}{_slice(shard.index)}", {})[str(shard.device)] = _digest(shard.data)
    return jax.tree.map(int, jax.device_get(found))


def first_difference(all_digests: Iterable[Mapping[str, Mapping[str, int]]]) -> tuple[str, str] | None:
    """Returns an array and the devices whose copy differs from that of most devices; None if all are equal."""
    merged: dict[str, dict[str, int]] = {}
    for digests in all_digests:
        for name, by_device in digests.items():
            merged.setdefault(name, {}).update(by_device)
    for name, by_device in merged.items():
        (usual, _), *others = collections.Counter(by_device.values()).most_common()
        if others:
            return name, ", ".join(device for device, digest in by_device.items() if digest != usual)
    return None


@jax.jit
def _digest(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Computed on the device, so that the array stays there."""
    kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    bits = jax.lax.bitcast_convert_type(array, kinds[array.dtype.itemsize])
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)


def _slice(index: tuple[slice, ...]) -> str:
    """A part of an array in words: empty for the whole array."""
    words = [":" if each == slice(None) else f"{each.start or 0}:{each.stop or ''}" for each in index]
    return "" if all(word == ":" for word in words) else f"[{', '.join(words)}]"
