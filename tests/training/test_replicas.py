"""Copies of the parameters on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from umd_eqx.core.errors import BadInput
from umd_eqx.training.replicas import digests_of, first_difference, require_equal_replicas

MESH = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))


def placed(spec, faulty=None):
    """An array on four devices, with one bit flipped on the device `faulty`."""
    sharding = NamedSharding(MESH, PartitionSpec(*spec))
    whole = np.arange(32, dtype=np.float32).reshape(8, 4)
    parts = []
    for number, (device, index) in enumerate(sharding.addressable_devices_indices_map(whole.shape).items()):
        part = whole[index].copy()
        if number == faulty:
            part.view(np.uint32)[0, 1] ^= 1
        parts.append(jax.device_put(part, device))
    return jax.make_array_from_single_device_arrays(whole.shape, sharding, parts)


@pytest.mark.parametrize("faulty", range(4))
@pytest.mark.parametrize(("spec", "which"), [((), "kernel"), (("fsdp",), r"kernel\[[04]:")])
def test_one_bit_on_one_device_is_found(faulty, spec, which):
    require_equal_replicas(3, {"kernel": placed(spec), "bias": jnp.zeros(3)})
    with pytest.raises(BadInput, match=f"at step 3, {which}.* is not what it is"):
        require_equal_replicas(3, {"kernel": placed(spec, faulty), "bias": jnp.zeros(3)})


def test_the_device_in_the_minority_is_named():
    with pytest.raises(BadInput, match=str(jax.devices()[2])):
        require_equal_replicas(1, placed((), faulty=2))


def test_parts_on_one_device_have_no_copies():
    assert digests_of([placed(("data", "fsdp")), jnp.ones(2), None]) == {}
    assert len(digests_of(placed(("fsdp",)))) == 2


def test_devices_of_several_processes_are_compared():
    equal = [{"w": {"gpu:0": 1, "gpu:1": 1}}, {"w": {"gpu:2": 1, "gpu:3": 1}}]
    assert first_difference(equal) is None
    equal[1]["w"]["gpu:3"] = 2
    assert first_difference(equal) == ("w", "gpu:3")
