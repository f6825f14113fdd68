import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.training.optim import EmaConfig, decayed, ema_update, horizon, schedule
from umd_eqx.training.optimisers import AdamW


def test_the_schedule_by_hand():
    # 1000 images in batches of 100 for 40 epochs: 400 steps, of which 5 % of the epochs, 2, are the first 20.
    config = AdamW(lr=1e-3, lr_batch_size=50, epochs=40.0)
    lr = schedule(config, 1000, 100)
    peak = 1e-3 * 100 / 50

    def by_hand(step: int) -> float:
        if step < 20:
            return peak * step / 20
        return peak * (1 + math.cos(math.pi * min(1.0, (step - 20) / 380))) / 2

    for step in (0, 1, 10, 19, 20, 21, 210, 399, 400, 500):
        assert float(lr(step)) == pytest.approx(by_hand(step), abs=1e-6 * peak), step
    assert (float(lr(0)), float(lr(20))) == (0, pytest.approx(peak))
    assert float(lr(210)) == pytest.approx(peak / 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AdamW(epochs=800.0), (40 * 1000 // 32, 25_000)),
        (AdamW(epochs=30.0), (1 * 1000 // 32, round(30 * 1000 / 32))),  # int(1.5) epochs of warm-up
        (AdamW(epochs=10.0), (0, round(10 * 1000 / 32))),
        (AdamW(epochs=0.5, warmup=0.5), (0, 16)),
        (AdamW(steps=777, warmup=0.1), (77, 777)),
    ],
)
def test_the_horizon_is_counted_as_the_reference_does(config, expected):
    assert horizon(config, 1000, 32) == expected


def test_the_peak_follows_the_batch_only_where_it_is_told_to():
    peaks = {}
    for lr_batch_size in (256, None):
        config = AdamW(lr=1.5e-4, lr_batch_size=lr_batch_size, steps=100, warmup=0.1)
        peaks[lr_batch_size] = float(schedule(config, 1, 1024)(10))
    assert peaks == {256: pytest.approx(6e-4), None: pytest.approx(1.5e-4)}


def test_one_step_is_a_schedule_too():
    assert np.isfinite(float(schedule(AdamW(steps=1, warmup=0.0), 10, 10)(0)))


def test_biases_class_tokens_and_mask_embedding_are_not_decayed(random_model):
    model = random_model(labels=True, variant="nano/4")
    mask = {
        jax.tree_util.keystr(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(decayed(eqx.filter(model, eqx.is_inexact_array)))
    }
    spared = {name for name, is_decayed in mask.items() if not is_decayed}
    assert spared == {name for name in mask if name.endswith(".bias")} | {".class_tokens", ".mask_token"}
    kept = {".positions", ".decoder_positions", ".condition.label_table", ".encoder.norm.scale", ".embed.kernel"}
    assert kept <= mask.keys() - spared


@pytest.fixture
def two_parameters():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    return eqx.tree_at(lambda m: (m.weight, m.bias), linear, (jnp.asarray([[2.0]]), jnp.asarray([3.0])))


def test_an_update_is_clipped_then_adam_then_decay_then_rate(two_parameters):
    config = AdamW(steps=10, weight_decay=0.1, clip=0.5, beta1=0.9, beta2=0.95)
    optimiser = config.transformation(lambda _: 0.01)
    weights, gradients = (2.0, 3.0), ((3.0, 4.0), (0.03, 0.04))  # of norm 5, clipped to 0.5, and of norm 0.05
    params = eqx.filter(two_parameters, eqx.is_inexact_array)
    state = optimiser.init(params)
    m, v = np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(gradients, 1):
        replacements = (jnp.full((1, 1), gradient[0]), jnp.full(1, gradient[1]))
        tree = eqx.tree_at(lambda p: (p.weight, p.bias), params, replacements)
        updates, state = optimiser.update(tree, state, params)
        g = np.asarray(gradient) * min(1.0, 0.5 / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        expected = -0.01 * (adam + 0.1 * np.asarray(weights) * [1, 0])  # the bias is not decayed
        np.testing.assert_allclose([updates.weight[0, 0], updates.bias[0]], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_moment_is_kept_as_asked(two_parameters, dtype):
    params = eqx.filter(two_parameters, eqx.is_inexact_array)
    state = AdamW(steps=1, mu_dtype=dtype).transformation(optax.constant_schedule(1.0)).init(params)
    (adam,) = [part for part in state if isinstance(part, optax.ScaleByAdamState)]
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("optim.epochs", {}),
        ("optim.epochs", {"epochs": 1.0, "steps": 1}),
        ("optim.epochs", {"epochs": -1.0}),
        ("optim.steps", {"steps": 0}),
        ("optim.lr", {"steps": 1, "lr": 0.0}),
        ("optim.lr", {"steps": 1, "lr": float("nan")}),
        ("optim.clip", {"steps": 1, "clip": -1.0}),
        ("optim.warmup", {"steps": 1, "warmup": 1.0}),
        ("optim.beta1", {"steps": 1, "beta1": 1.0}),
        ("optim.beta2", {"steps": 1, "beta2": -0.1}),
        ("optim.weight_decay", {"steps": 1, "weight_decay": -0.1}),
        ("optim.accumulate", {"steps": 1, "accumulate": 0}),
        ("optim.lr_batch_size", {"steps": 1, "lr_batch_size": 0}),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(field, values):
    AdamW(**{"steps": None if "epochs" in values else 1}, epochs=1.0 if "epochs" in values else None).validate()
    with pytest.raises(BadInput, match=field) as refusal:
        AdamW(**values).validate()
    assert refusal.value.field == field


def test_the_rate_of_the_average():
    assert EmaConfig().rate_for(1024, labels=False) == pytest.approx(4e-4)
    assert EmaConfig(rate=0.01, batch_size=None).rate_for(1024, labels=False) == 0.01
    published = EmaConfig(only_with_labels=True)
    assert published.rate_for(256, labels=False) is None
    assert EmaConfig(rate=None).rate_for(256, labels=True) is None
    assert published.rate_for(256, labels=True) == pytest.approx(1e-4)


@pytest.mark.parametrize("config", [EmaConfig(rate=0.0), EmaConfig(rate=-1e-3), EmaConfig(rate=0.5, batch_size=16)])
def test_a_rate_that_is_none_is_refused(config):
    with pytest.raises(BadInput, match=r"ema\.rate: .* outside \(0, 1\]"):
        config.rate_for(64, labels=True)


def test_the_average_moves_by_its_rate_and_takes_the_rest_from_the_model(two_parameters):
    average = jax.tree.map(lambda leaf: leaf + 1.0 if eqx.is_array(leaf) else leaf, two_parameters)
    moved = ema_update(average, two_parameters, 0.25)
    np.testing.assert_allclose(moved.weight, [[2.75]])
    np.testing.assert_allclose(moved.bias, [3.75])
    assert moved.in_features == 1
    with_count = ema_update((average, jnp.asarray(1)), (two_parameters, jnp.asarray(7)), 0.25)
    assert int(with_count[1]) == 7
