"""Several processes, each of which loads its own rows of a batch."""

import socket
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_processes_load_their_own_rows_of_one_batch():
    code = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from umd_eqx.data.loader import batch_at, training_batches
from umd_eqx.data.source import open_source
from umd_eqx.data.transforms import TrainTransform
source = open_source("fashion_mnist", None, "test")
asked = []
class Counting:
    spec = source.spec
    __len__ = lambda self: len(source)
    labels = lambda self, indices: source.labels(indices)
    def __getitem__(self, index):
        asked.append(index)
        return source[index]
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
which = {"batch_size": 8, "seed": 0}
stream = training_batches(Counting(), TrainTransform(28), **which, start_step=3, sharding=sharding, prefetch=0)
batch = next(stream)
assert len(asked) == 4, asked
whole = batch_at(source, TrainTransform(28), **which, step=3)
for mine, all_rows in zip(jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True):
    assert mine.shape == all_rows.shape
    for shard in mine.addressable_shards:
        np.testing.assert_array_equal(shard.data, all_rows[shard.index])
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [sys.executable, "-c", code, address]
    both = [subprocess.Popen([*arguments, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
