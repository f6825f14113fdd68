import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import (
    batch_sharding,
    chunked_vmap,
    make_mesh,
    micro_batches,
    place,
    replicated,
    validate_batch,
)
from umd_eqx.core.types import Batch
from umd_eqx.objectives import unified
from umd_eqx.training.optim import AbstractOptimiser, schedule
from umd_eqx.training.optimisers import LARS, AdamW, Muon
from umd_eqx.training.step import Parts, Trainable, TrainState, compile_step
from umd_eqx.training.trainable import EVERYTHING, AllExcept

STEPS = 5

if len(jax.devices()) < 8:
    pytest.skip("needs 8 devices: run with --xla_force_host_platform_device_count=8", allow_module_level=True)


def images(batch_size: int) -> Batch:
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(batch_size, 8, 8, 3)), jnp.float32)
    return Batch(image, jnp.asarray(rng.integers(0, 5, batch_size)), jnp.ones(batch_size, bool))


@pytest.fixture(scope="module")
def compiled(random_model):
    """`compiled(devices, batch_size, accumulate, trainable)`: a step, its first arguments, and a first state."""

    def make(
        devices: int,
        batch_size: int = 16,
        accumulate: int = 1,
        trainable: Trainable = EVERYTHING,
        optimiser: type[AbstractOptimiser] = AdamW,
    ):
        mesh = make_mesh(jax.devices()[:devices])
        config = optimiser(lr=1e-3, lr_batch_size=None, steps=20, warmup=0.1)
        lr = schedule(config, 1, 1)
        parts = Parts(unified(), CosineTable(), config.transformation(lr), lr, mesh, 0, 0.1, accumulate, trainable)
        state = TrainState.init(random_model(labels=True), parts.optimiser, ema=True, trainable=trainable)
        state = place(state, replicated(mesh))
        batch = place(images(batch_size), batch_sharding(mesh))
        return compile_step(parts, state, batch), (parts, batch), state

    return make


@pytest.fixture(scope="module")
def on_eight(compiled):
    return compiled(8)


def losses(step, given, state) -> list[float]:
    found = []
    for _ in range(STEPS):
        state, metrics = step(given, state)
        found.append(float(metrics["loss"]))
    return found


def moves_between_devices(compiled) -> set[str]:
    """The collectives of a compiled program."""
    names = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    return set(re.findall(rf"\b({names})(?:-start)?\(", compiled.as_text()))


def test_eight_devices_train_as_one_does(compiled, on_eight):
    alone, together = losses(*compiled(1)), losses(*on_eight)
    assert len({round(loss, 4) for loss in alone}) == STEPS  # it does train
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_eight_devices_train_a_part_as_one_does(compiled):
    trainable, found = AllExcept(("embed", "condition", "encoder")), {}
    for devices in (1, 8):
        step, given, state = compiled(devices, trainable=trainable)
        first, rows = jax.tree.map(np.array, eqx.filter(state.model, eqx.is_array)), []
        for _ in range(STEPS):
            state, metrics = step(given, state)
            rows.append([float(metrics[name]) for name in ("loss", "grad_norm")])
        frozen = eqx.filter(state.model, trainable(state.model), inverse=True)
        jax.tree.map(np.testing.assert_array_equal, frozen, eqx.filter(first, trainable(first), inverse=True))
        found[devices] = np.array(rows)
    assert len(set(found[1][:, 0].round(4))) == STEPS  # it does train
    np.testing.assert_allclose(found[8], found[1], rtol=2e-5)


@pytest.mark.parametrize("optimiser", [Muon, LARS])
def test_eight_devices_train_as_one_does_with_another_optimiser(compiled, optimiser):
    alone, together = (losses(*compiled(devices, optimiser=optimiser)) for devices in (1, 8))
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_no_image_leaves_its_device(on_eight):
    assert moves_between_devices(on_eight[0].compiled) == {"all-reduce"}


def test_no_image_leaves_its_device_in_micro_batches(compiled):
    assert moves_between_devices(compiled(8, batch_size=32, accumulate=2)[0].compiled) <= {"all-reduce"}


def test_states_are_whole_everywhere_and_batches_are_shared_out(on_eight):
    _, (_, batch), _ = on_eight
    assert {shard.data.shape for shard in batch.image.addressable_shards} == {(2, 8, 8, 3)}
    whole = place(jnp.arange(5.0), replicated(make_mesh()))
    assert [shard.data.shape for shard in whole.addressable_shards] == [(5,)] * len(jax.devices())


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    mesh = make_mesh(jax.devices()[:8])
    validate_batch(16, mesh, accumulate=1, period=2)
    for batch_size, hint in ((12, 16), (3, 8), (20, 16), (101, 104)):
        message = rf"{batch_size} cannot be divided evenly over 8 devices\. Use {hint}"
        with pytest.raises(BadInput, match=message) as refusal:
            validate_batch(batch_size, mesh, accumulate=1, period=1)
        assert refusal.value.field == "data.batch_size"
        validate_batch(hint, mesh, accumulate=1, period=1)
    with pytest.raises(BadInput, match=r"data\.batch_size: 0 is not a valid batch size"):
        validate_batch(0, mesh, accumulate=1, period=1)


def test_micro_batches_that_would_differ_are_refused_with_those_that_would_not():
    mesh = make_mesh(jax.devices()[:1])
    # 256 images of which 12 are clean: 4 periods of 64.
    with pytest.raises(BadInput, match=r"cannot be split into 3 equal micro-batches\. Use one of 1, 2, 4") as refusal:
        validate_batch(256, mesh, accumulate=3, period=64)
    assert refusal.value.field == "optim.accumulate"
    for accumulate in (1, 2, 4):
        validate_batch(256, mesh, accumulate, period=64)


def test_micro_batches_with_fewer_images_than_devices_are_refused():
    mesh = make_mesh(jax.devices()[:8])
    message = r"on 8 devices cannot be split into 4 equal micro-batches\. Use one of 1, 2$"
    with pytest.raises(BadInput, match=message) as refusal:
        validate_batch(16, mesh, accumulate=4, period=1)
    assert refusal.value.field == "optim.accumulate"
    validate_batch(16, mesh, accumulate=2, period=1)


def test_micro_batches_by_hand():
    # 4 periods of 2: every second period, so that each device gives its own images to both.
    cut = micro_batches({"x": jnp.arange(8), "y": jnp.arange(16).reshape(8, 2)}, accumulate=2, period=2)
    np.testing.assert_array_equal(cut["x"], [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(cut["y"][1], [[4, 5], [6, 7], [12, 13], [14, 15]])


def test_place_leaves_what_is_no_array():
    placed = place((jnp.ones(3), "name", None), replicated(make_mesh()))
    assert placed[1:] == ("name", None)
    assert eqx.is_array(placed[0])


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("pixels", [1, 64, 200, 10_000])
def test_in_pieces_every_image_comes_back_in_its_place(devices, pixels):
    mesh, given = make_mesh(jax.devices()[:devices]), jnp.arange(24 * 64.0).reshape(24, 8, 8, 1)

    @jax.jit
    def both(images):
        return chunked_vmap(lambda image: (image[::2] + 1, jnp.sum(image)), images, mesh, pixels=pixels)

    halves, sums = both(place(given, batch_sharding(mesh)))
    np.testing.assert_array_equal(halves, given[:, ::2] + 1)
    np.testing.assert_array_equal(sums, given.sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("pixels", "factor", "most"), [(256, 1, 4), (320, 1, 4), (256, 2, 1), (1, 1, 1), (10_000, 1, 12)]
)
def test_in_pieces_a_device_has_no_more_images_at_once_than_was_said(pixels, factor, most):
    mesh = make_mesh(jax.devices()[:2])
    program = jax.make_jaxpr(lambda x: chunked_vmap(jnp.tanh, x, mesh, pixels=pixels, factor=factor))
    shapes = re.findall(r"f32\[(\d+),8,8,1\] = tanh", str(program(jnp.zeros((24, 8, 8, 1)))))
    assert shapes == [str(2 * most)]


def test_in_pieces_no_image_leaves_its_device():
    mesh = make_mesh(jax.devices()[:8])
    given = place(jnp.zeros((32, 8, 8, 1)), batch_sharding(mesh))
    program = jax.jit(lambda x: chunked_vmap(jnp.tanh, x, mesh, pixels=64)).lower(given).compile()
    assert "while" in program.as_text()  # in pieces indeed
    assert moves_between_devices(program) == set()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_in_pieces_maps_several_arrays_together(devices):
    mesh = make_mesh(jax.devices()[:devices])
    given = place(jnp.arange(24 * 64.0).reshape(24, 8, 8, 1), batch_sharding(mesh))
    keys = jax.vmap(jax.random.key)(jnp.arange(24))

    def noised(one):
        image, key = one["image"], one["key"]
        return image + jax.random.normal(key, image.shape), key

    found, same_keys = jax.jit(lambda x, k: chunked_vmap(noised, {"image": x, "key": k}, mesh, pixels=64))(given, keys)
    expected, _ = jax.jit(lambda x, k: jax.vmap(lambda x, k: noised({"image": x, "key": k}))(x, k))(given, keys)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(jax.random.key_data(same_keys), jax.random.key_data(keys))


def test_in_pieces_no_image_leaves_its_device_for_the_sake_of_its_key():
    mesh = make_mesh(jax.devices()[:8])
    given = place(jnp.zeros((32, 8, 8, 1)), batch_sharding(mesh))
    keys = place(jax.vmap(jax.random.key)(jnp.arange(32)), replicated(mesh))

    def noised(images, keys):
        return chunked_vmap(
            lambda one: one[0] + jax.random.normal(one[1], one[0].shape), (images, keys), mesh, pixels=64
        )

    program = jax.jit(noised, out_shardings=batch_sharding(mesh)).lower(given, keys).compile()
    assert moves_between_devices(program) == set()


def test_in_pieces_a_batch_that_the_devices_cannot_share_is_bounded_too():
    mesh = make_mesh(jax.devices()[:8])
    given = jnp.arange(12 * 64.0).reshape(12, 8, 8, 1)
    program = jax.make_jaxpr(lambda x: chunked_vmap(jnp.tanh, x, mesh, pixels=300))
    assert re.findall(r"f32\[(\d+),8,8,1\] = tanh", str(program(given))) == ["4"]
    np.testing.assert_array_equal(chunked_vmap(lambda x: x + 1, given, mesh, pixels=300), given + 1)


def test_in_pieces_without_need_is_vmap():
    mesh, given = make_mesh(jax.devices()[:2]), (jnp.zeros((24, 8, 8, 1)), jnp.zeros(24))
    pieces = jax.make_jaxpr(lambda x: chunked_vmap(lambda one: one[0] * one[1], x, mesh))(given)
    assert str(pieces) == str(jax.make_jaxpr(jax.vmap(lambda one: one[0] * one[1]))(given))
