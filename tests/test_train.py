import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from umd_eqx.objectives import masked_reconstruction, unified
from umd_eqx.paths import CosineTable
from umd_eqx.sharding import batch_sharding, make_mesh, place, replicated
from umd_eqx.train import Parts, TrainState, train_step
from umd_eqx.types import Batch

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
    in_pieces, same_metrics = train_step(parts(name, pieces), start(), batch)
    assert metrics.keys() == same_metrics.keys()
    for key, value in metrics.items():
        assert float(same_metrics[key]) == pytest.approx(float(value), rel=1e-5), key
    # Plain gradient descent: the weights differ by as much as the gradients do.
    before = leaves(start().model)
    for (path, a), b in zip(leaves(whole.model).items(), leaves(in_pieces.model).values(), strict=True):
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
