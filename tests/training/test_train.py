import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from umd_eqx.core.paths import Clean, CosineTable
from umd_eqx.core.sharding import batch_sharding, make_mesh, place, replicated
from umd_eqx.core.types import Batch
from umd_eqx.models.extractors.classifier import FEATURES, FashionClassifier
from umd_eqx.objectives import Classification, masked_reconstruction, unified
from umd_eqx.training.flops import product_flops, step_flops
from umd_eqx.training.optim import schedule
from umd_eqx.training.optimisers import AdamW
from umd_eqx.training.step import Parts, TrainState, loss_and_grads, train_step
from umd_eqx.training.trainable import EVERYTHING, AllExcept, Only, parameter_names

B, RATE = 16, 0.2
OBJECTIVES = {"umd": unified(), "mae": masked_reconstruction()}


@functools.cache
def parts(name: str = "umd", accumulate: int = 1, seed: int = 0) -> Parts:
    """Cached, so that a step is compiled once. The optimiser has a state, and is linear in the gradient."""
    lr = optax.linear_schedule(0.1, 0.0, 10)
    optimiser = optax.sgd(lr, momentum=0.9)
    mesh = make_mesh(jax.devices()[:1])
    return Parts(OBJECTIVES[name], CosineTable(), optimiser, lr, mesh, seed, RATE, accumulate)


@pytest.fixture(scope="module")
def start(random_model):
    """`start()`: a fresh copy of the same state, whose average is not its model. Steps destroy what they are given."""
    model = random_model(labels=True)

    def make(step: int = 0) -> TrainState:
        state = TrainState.init(model, parts().optimiser, ema=True)
        average = jax.tree.map(lambda leaf: leaf + 0.5 if eqx.is_inexact_array(leaf) else leaf, state.ema)
        state = eqx.tree_at(lambda s: (s.ema, s.step), state, (average, jnp.asarray(step, jnp.int32)))
        state = jax.tree.map(lambda leaf: jnp.array(leaf) if eqx.is_array(leaf) else leaf, state)
        return place(state, replicated(parts().mesh))

    return make


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(B, 8, 8, 3)).astype(np.float32)
    batch = Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, 5, B)), jnp.ones(B, bool))
    return place(batch, batch_sharding(parts().mesh))


def leaves(tree) -> dict[str, np.ndarray]:
    arrays = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in arrays}


def assert_equal(a, b):
    for (name, x), y in zip(leaves(a).items(), leaves(b).values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def is_equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(leaves(a).values(), leaves(b).values(), strict=True))


@pytest.mark.parametrize(("name", "pieces"), [("umd", 2), ("umd", 4), ("mae", 4)])
def test_micro_batches_give_the_step_of_the_whole_batch(start, batch, name, pieces):
    whole, metrics = train_step(parts(name), start(), batch)
    chunked_vmap, same_metrics = train_step(parts(name, pieces), start(), batch)
    assert metrics.keys() == same_metrics.keys()
    for key, value in metrics.items():
        assert float(same_metrics[key]) == pytest.approx(float(value), rel=1e-5), key
    # Plain gradient descent: the weights differ by as much as the gradients do.
    before = leaves(start().model)
    for (path, a), b in zip(leaves(whole.model).items(), leaves(chunked_vmap.model).values(), strict=True):
        np.testing.assert_allclose(b - before[path], a - before[path], atol=1e-6, rtol=1e-3, err_msg=path)


def test_a_step_says_what_it_did(start, batch):
    state, metrics = train_step(parts(), start(step=3), batch)
    assert int(state.step) == 4
    assert int(state.skipped) == 0
    assert float(metrics["lr"]) == pytest.approx(0.1 * (1 - 3 / 10))
    assert float(metrics["skipped"]) == 0
    both = (float(metrics["denoising/loss"]) + float(metrics["reconstruction/loss"])) / 2
    assert float(metrics["loss"]) == pytest.approx(both, rel=1e-5)
    # The first step of momentum is that of plain descent, at the rate of the optimiser's own count: 0.1.
    moved = [a - b for a, b in zip(leaves(state.model).values(), leaves(start().model).values(), strict=True)]
    norm = np.sqrt(sum(np.sum(np.square(difference, dtype=np.float64)) for difference in moved))
    assert float(metrics["grad_norm"]) == pytest.approx(norm / 0.1, rel=1e-4)


def test_an_image_that_is_no_number_changes_nothing_but_the_count(start, batch):
    broken = eqx.tree_at(lambda b: b.image, batch, batch.image.at[5, 2, 3, 1].set(jnp.nan))
    state, metrics = train_step(parts(), start(step=2), place(broken, batch_sharding(parts().mesh)))
    assert not np.isfinite(float(metrics["loss"]))
    assert int(metrics["skipped"]) == 1
    before = start(step=2)
    for part in ("model", "ema", "opt_state"):
        assert_equal(getattr(state, part), getattr(before, part))
    assert (int(state.step), int(state.skipped)) == (3, 1)
    # The next one goes on as if nothing had been.
    state, metrics = train_step(parts(), state, batch)
    assert (int(state.step), int(state.skipped)) == (4, 1)
    assert int(metrics["skipped"]) == 0
    assert not is_equal(state.model, before.model)


def test_a_step_follows_from_seed_step_state_and_batch(start, batch):
    first, metrics = train_step(parts(), start(), batch)
    again, same_metrics = train_step(parts(), start(), batch)
    assert_equal((first, metrics), (again, same_metrics))
    for other_parts, step in ((parts(), 1), (parts(seed=1), 0)):
        other, other_metrics = train_step(other_parts, start(step=step), batch)
        assert float(other_metrics["loss"]) != float(metrics["loss"])
        assert not is_equal(other.model, first.model)


def test_the_average_moves_toward_the_new_weights_at_its_rate(start, batch):
    before = leaves(start().ema)
    state, _ = train_step(parts(), start(), batch)
    model = leaves(state.model)
    for name, average in leaves(state.ema).items():
        np.testing.assert_allclose(average, before[name] + RATE * (model[name] - before[name]), atol=1e-6, err_msg=name)


def test_the_average_begins_as_a_copy_of_the_weights(random_model):
    model = random_model()
    state = TrainState.init(model, parts().optimiser, ema=True)
    assert_equal(state.ema, model)
    copies, originals = (jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (state.ema, state.model))
    for a, b in zip(copies, originals, strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()  # else donation would take one for the other
    assert TrainState.init(model, parts().optimiser, ema=False).ema is None


def test_the_state_is_given_up_and_the_batch_is_not(start, batch):
    state = start()
    train_step(parts(), state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))


# A part of every stack, the whole decoder with a head, and single leaves beside stacked ones.
PARTS_TRAINED = {
    "decoder": AllExcept(("embed", "positions", "class_tokens", "condition", "encoder")),
    "head": Only(("head",)),
    "leaves": AllExcept(("encoder.norm.scale", "mask_token", "decoder.blocks.norm1")),
}


def partly(trainable, accumulate: int = 1) -> Parts:
    """Steps of AdamW, whose decay and clipping would reach what is frozen if they were given it."""
    config = AdamW(lr=1e-2, lr_batch_size=None, steps=10, warmup=0.0, weight_decay=0.5, clip=1e-3)
    lr = schedule(config, 1, 1)
    mesh = make_mesh(jax.devices()[:1])
    return Parts(OBJECTIVES["umd"], CosineTable(), config.transformation(lr), lr, mesh, 0, RATE, accumulate, trainable)


@pytest.fixture(scope="module")
def whole_gradient(random_model, batch):
    """The gradient in every parameter at the first step, and the loss."""
    step, model = partly(EVERYTHING), random_model(labels=True)
    key = jax.random.fold_in(jax.random.key(step.seed), 0)

    @eqx.filter_jit
    def gradient(model):
        numbers = step.objective.draw(key, model, step.path, batch.image.shape)
        return loss_and_grads(step, model, batch, numbers)

    (loss, _), grads = gradient(model)
    return loss, grads


@pytest.mark.parametrize(("name", "accumulate"), [*((name, 1) for name in PARTS_TRAINED), ("decoder", 2)])
def test_what_is_frozen_keeps_its_bits_and_the_rest_is_trained(random_model, batch, whole_gradient, name, accumulate):
    trainable = PARTS_TRAINED[name]
    step, model = partly(trainable, accumulate), random_model(labels=True)
    state = TrainState.init(model, step.optimiser, ema=True, trainable=trainable)
    state = eqx.tree_at(lambda s: s.ema, state, jax.tree.map(lambda x: x * 2 if eqx.is_array(x) else x, state.ema))
    trained = set(parameter_names(eqx.filter(model, trainable(model))))
    before = {part: leaves(getattr(state, part)) for part in ("model", "ema")}

    state = place(jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state), replicated(step.mesh))
    state, metrics = train_step(step, state, batch)
    loss, grads = whole_gradient
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    norm = optax.tree.norm(eqx.filter(grads, trainable(grads)))
    assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-4)
    assert float(norm) < 0.999 * float(optax.tree.norm(grads))
    for _ in range(2):
        state, _ = train_step(step, state, batch)
    assert int(state.skipped) == 0
    for part, was in before.items():
        now = leaves(getattr(state, part))
        assert {path[1:] for path in was if not np.array_equal(now[path], was[path])} == trained, part


@pytest.mark.parametrize("name", PARTS_TRAINED)
def test_the_optimiser_has_no_state_for_what_is_frozen(random_model, name):
    trainable, model = PARTS_TRAINED[name], random_model(labels=True)
    trained = parameter_names(eqx.filter(model, trainable(model)))
    state = TrainState.init(model, partly(trainable).optimiser, ema=False, trainable=trainable)
    adam = state.opt_state[1]
    assert parameter_names(adam.mu) == parameter_names(adam.nu) == trained
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(eqx.filter(state.opt_state, eqx.is_inexact_array)))
    assert shapes == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(eqx.filter(model, trainable(model)))])


def test_by_default_the_state_has_the_structure_that_it_had_before_there_was_a_choice(random_model):
    model, optimiser = random_model(labels=True), partly(EVERYTHING).optimiser
    state = TrainState.init(model, optimiser, ema=True)
    assert_equal(state.opt_state, optimiser.init(eqx.filter(model, eqx.is_inexact_array)))


def products_of_gradient(step: Parts, model, images: jax.Array) -> int:
    batch = Batch(images, jnp.zeros(len(images), int), jnp.ones(len(images), bool))

    def function(model):
        numbers = step.objective.draw(jax.random.key(0), model, step.path, images.shape)
        return loss_and_grads(step, model, batch, numbers)

    return product_flops(function, model)


def test_no_product_is_computed_for_the_gradient_of_what_is_frozen(random_model):
    mesh, image = make_mesh(jax.devices()[:1]), (28, 28, 1)
    images = jnp.zeros((4, *image))
    classifier = FashionClassifier.init(10, key=jax.random.key(0))
    found, counted = {}, {}
    for name, trainable in {"all": EVERYTHING, "head": Only(("head",)), "hidden": Only(("hidden",))}.items():
        step = Parts(Classification(), Clean(), optax.sgd(0.1), lambda _: 0.1, mesh, 0, trainable=trainable)
        found[name] = products_of_gradient(step, classifier, images)
        counted[name] = step_flops(step.objective, classifier, step.path, image, 4, trainable)
    forward = step_flops(Classification(), classifier, Clean(), image, 4) // 3
    head = 2 * 4 * FEATURES * 10
    # The gradient of a kernel takes as many products as its layer, and so does the gradient of the layer's input.
    assert found["head"] == forward + head
    assert found["hidden"] == forward + head + 2 * 4 * classifier.hidden.kernel.size
    assert found == counted

    # A stack of blocks, scanned and rematerialised: its forward pass is computed once.
    model, images = random_model(labels=True), jnp.zeros((4, 8, 8, 3))
    forward = step_flops(OBJECTIVES["umd"], model, CosineTable(), (8, 8, 3), 4) // 3
    assert forward < products_of_gradient(partly(PARTS_TRAINED["head"]), model, images) < 1.1 * forward
    assert products_of_gradient(partly(EVERYTHING), model, images) > 2.9 * forward


def test_the_cost_of_a_whole_step_is_the_same_by_either_count(random_model):
    given = (OBJECTIVES["umd"], random_model(labels=True), CosineTable(), (8, 8, 3), 4)
    # Only the gradient of the images is missing from one of them.
    assert 0.95 * step_flops(*given) < step_flops(*given, EVERYTHING) < step_flops(*given)
