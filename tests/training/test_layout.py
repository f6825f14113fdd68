"""The state may lie on eight devices in any way: the training is the same, and only layers are gathered."""

import dataclasses
import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import AXES, ShardingConfig, batch_sharding, make_mesh, place
from umd_eqx.core.types import Batch
from umd_eqx.objectives import unified
from umd_eqx.training import layout
from umd_eqx.training.layout import Layout
from umd_eqx.training.optim import schedule
from umd_eqx.training.optimisers import AdamW
from umd_eqx.training.step import Parts, TrainState, compile_step

STEPS = 3
LAYOUTS = [(8, 1), (4, 1), (1, 2), (4, 2)]
"""Sizes of the axes `fsdp` and `tensor`."""

if len(jax.devices()) < 8:
    pytest.skip("needs 8 devices: run with --xla_force_host_platform_device_count=8", allow_module_level=True)


@pytest.fixture(autouse=True)
def small_arrays_are_divided(monkeypatch):
    monkeypatch.setattr(layout, "SMALLEST", 64)


@pytest.fixture(scope="module")
def trained(random_model):
    """`trained(fsdp, tensor)`: a step compiled for eight devices, its losses, and the state after it."""

    @functools.cache
    def run(fsdp: int, tensor: int):
        mesh = make_mesh(jax.devices()[:8], ShardingConfig(fsdp=fsdp, tensor=tensor))
        config = AdamW(lr=1e-3, lr_batch_size=None, steps=20, warmup=0.1)
        lr = schedule(config, 1, 1)
        parts = Parts(unified(), CosineTable(), config.transformation(lr), lr, mesh, 0, 0.1)
        state = TrainState.init(random_model(labels=True), parts.optimiser, ema=True)
        state = parts.layout.place(state)
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.normal(size=(16, 8, 8, 3)), jnp.float32)
        batch = Batch(images, jnp.asarray(rng.integers(0, 5, 16)), jnp.ones(16, bool))
        given = (parts, place(batch, batch_sharding(mesh)))
        step, losses = compile_step(*given[:1], state, given[1]), []
        for _ in range(STEPS):
            state, metrics = step(given, state)
            losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        return step.compiled, np.array(losses), state

    return run


@pytest.mark.parametrize(("fsdp", "tensor"), LAYOUTS)
def test_every_layout_trains_as_copies_do(trained, fsdp, tensor):
    _, expected, copies = trained(1, 1)
    _, found, state = trained(fsdp, tensor)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(copies), strict=True):
        if eqx.is_array(ours):
            np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=5e-5)


def spread(state) -> dict[str, tuple[int, ...]]:
    """The shape of the part of each array on a device, as a fraction of the whole, where it is divided."""
    named = jax.tree_util.tree_flatten_with_path(eqx.filter(state, eqx.is_array))[0]
    shares = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in named}
    return {
        name: tuple(
            whole // part for whole, part in zip(leaf.shape, leaf.addressable_shards[0].data.shape, strict=True)
        )
        for name, leaf in shares.items()
        if leaf.addressable_shards[0].data.size < leaf.size
    }


def test_the_state_is_divided_and_stays_so(trained):
    _, _, state = trained(4, 2)
    found = spread(state)
    for part in ("model", "ema", "opt_state.1.mu"):
        assert found[f"{part}.encoder.blocks.attention.qkv.kernel"] == (1, 1, 8)
        assert found[f"{part}.encoder.blocks.attention.out.kernel"] == (1, 2, 4)
        assert found[f"{part}.encoder.blocks.mlp.up.kernel"] == (1, 4, 2)
        assert found[f"{part}.encoder.blocks.mlp.down.kernel"] == (1, 2, 4)
    size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array)))
    here = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array)))
    assert here < 1.1 * size / 8
    assert spread(trained(1, 1)[2]) == {}


def collectives(compiled) -> set[tuple[str, bool]]:
    """The kinds of collectives of a program, and whether they are in the scan over layers."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.finditer(rf"\b({kinds})(?:-start)?\((.*)", compiled.as_text())
    return {(match[1], "/while/body/" in match[2]) for match in found}


def test_layers_are_gathered_one_at_a_time_and_nothing_else_is_exchanged(trained):
    assert {kind for kind, _ in collectives(trained(1, 1)[0])} == {"all-reduce"}
    found = collectives(trained(8, 1)[0])
    assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert ("all-gather", True) in found


def test_the_largest_axis_that_divides_is_divided_and_the_axis_of_layers_never():
    rules = Layout(make_mesh(jax.devices()[:8], ShardingConfig(fsdp=2, tensor=2)))
    for path, shape, expected in (
        ("model.embed.kernel", (48, 192), P(None, ("fsdp", "tensor"))),
        ("model.embed.kernel", (48, 190), P(("fsdp", "tensor"), None)),
        ("model.embed.kernel", (46, 190), P(None, ("fsdp",))),
        ("model.embed.kernel", (45, 191), P(None, None)),
        ("model.embed.bias", (16,), P()),
        ("ema.encoder.blocks.norm1.scale", (64, 32), P()),
        ("model.encoder.blocks.attention.qkv.kernel", (64, 48, 96), P(None, None, ("fsdp", "tensor"))),
        ("model.encoder.blocks.attention.out.kernel", (64, 48, 96), P(None, "tensor", ("fsdp",))),
        ("opt_state.1.mu.decoder.blocks.mlp.up.kernel", (4, 48, 96), P(None, ("fsdp",), "tensor")),
        ("opt_state.1.count", (), P()),
    ):
        assert rules.spec(path, shape) == expected, path
    assert Layout(make_mesh(jax.devices()[:8])).spec("model.embed.kernel", (64, 64)) == P(None, None)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of a mesh that is too large for this machine."""

    id: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(
    ("devices", "tensor", "shape", "parts"),
    [
        (512, 1, (12, 768, 2304), (12, 768 // 16, 2304 // 32)),  # no axis can be divided over 512
        (512, 1, (32, 1280, 1280), (32, 1280 // 32, 1280 // 16)),
        (512, 1, (12, 768, 4608), (12, 768, 9)),
        (512, 2, (12, 768, 2304), (12, 768 // 16 // 2, 2304 // 16)),
    ],
)
def test_an_array_that_no_axis_divides_is_divided_along_two(devices, tensor, shape, parts):
    shaped = np.array([Device(number) for number in range(devices)]).reshape(1, -1, tensor)
    mesh = Mesh(shaped, AXES, axis_types=(AxisType.Auto,) * 3)
    found = Layout(mesh).sharding("model.encoder.blocks.attention.qkv.kernel", shape)
    assert found.shard_shape(shape) == parts
    assert list(np.ravel(found.mesh.devices)) == list(shaped.flat)


def test_an_array_divided_along_two_axes_keeps_its_values_and_its_place():
    rules = Layout(make_mesh(jax.devices()[:8], ShardingConfig(fsdp=8)))
    kernel = jnp.arange(2 * 12 * 20, dtype=jnp.float32).reshape(2, 12, 20)
    state = rules.place({"encoder": {"blocks": {"kernel": kernel}}})
    after = jax.jit(lambda tree: rules.place(jax.tree.map(lambda leaf: 2 * leaf, tree)))({".": state})
    (found,) = jax.tree.leaves(after)
    assert found.sharding.shard_shape(found.shape) == (2, 6, 5)
    np.testing.assert_array_equal(found, 2 * kernel)


def test_what_cannot_be_divided_is_refused(random_model):
    eight = jax.devices()[:8]
    for sharding, field, said in (
        (ShardingConfig(fsdp=3), "fsdp", "3 x 1 (`sharding.tensor`) does not divide 8 devices"),
        (ShardingConfig(data=3, fsdp=4), "data", "3 x 4 x 1 is not the number of devices, 8"),
        (ShardingConfig(tensor=0), "tensor", "0 is too small"),
    ):
        with pytest.raises(BadInput) as error:
            make_mesh(eight, sharding)
        assert (error.value.field, error.value.problem) == (f"sharding.{field}", said)
    with pytest.raises(BadInput, match=r"2 heads cannot be divided evenly over 4 devices\. Use one of 1, 2"):
        Layout(make_mesh(eight, ShardingConfig(tensor=4))).require_divisible(random_model())
