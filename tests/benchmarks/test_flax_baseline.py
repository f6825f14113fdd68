"""The Flax baseline of the speed benchmark agrees with the reference (tests/golden_data/README.md)."""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden_data"


def _load():
    """The module, imported as by the scripts in its folder: tests/benchmarks would shadow that folder."""
    folder = str(TESTS.parent / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("flax_baseline")
    finally:
        sys.path.remove(folder)


fb = _load()
TINY = fb.Variant(width=32, encoder_depth=2, decoder_depth=1, heads=4)
NAMES = {True: "adaln", False: "noadaln"}


@pytest.fixture(autouse=True)
def plain_promotion():
    """Flax and optax promote freely, whatever the rest of the suite demands."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def flat_params(adaln):
    return {k: v for k, v in golden(f"params_{NAMES[adaln]}").items() if not k.startswith("label_")}


def tiny(adaln, *, scan=True, remat=True, system="umd"):
    system = fb.SYSTEMS[system]._replace(adaln=adaln)
    baseline = fb.build(system, TINY, patch=4, image_size=16, scan=scan, remat=remat)
    flat = flat_params(adaln)
    return baseline, fb.unflatten(fb.stack_layers(flat) if scan else flat)


def recorded_inputs():
    z = golden("loss")
    return fb.Inputs(z["images"], z["t"][:, 0], z["noise"], z["mask_noise_noised"], z["mask_noise_clean"])


def error(actual, expected):
    return float(np.abs(np.asarray(actual) - expected).max() / max(1, np.abs(expected).max()))


@pytest.mark.parametrize("case", ["m000", "m375", "m750"])
@pytest.mark.parametrize("adaln", [True, False], ids=NAMES.get)
def test_outputs_are_the_reference_s(adaln, case):
    baseline, params = tiny(adaln)
    inputs, expected = golden("model_inputs"), golden(f"model_{NAMES[adaln]}")
    u = inputs[f"{case}/noise"] if case != "m000" else np.zeros((3, 16), np.float32)
    apply = jax.jit(baseline.apply, static_argnums=4)
    prediction, representation, mask = apply(params, inputs["image"], inputs["t"][:, 0], u, int(case[1:]) / 1000)
    assert error(prediction, expected[f"{case}_uncond/pred"]) < 5e-5
    assert error(representation, expected[f"{case}_uncond/pre_logits"]) < 5e-5
    np.testing.assert_array_equal(mask, expected.get(f"{case}/mask", np.zeros((3, 16, 16, 1))))


@pytest.mark.parametrize(("adaln", "scan"), [(True, True), (False, True), (True, False)])
def test_losses_and_gradients_are_the_reference_s(adaln, scan):
    baseline, params = tiny(adaln, scan=scan)
    expected = golden("e2e_loss_grad")

    @jax.jit
    def terms_and_grads(params, inputs):
        (loss, terms), grads = jax.value_and_grad(
            lambda p: (baseline.loss(p, inputs), baseline.terms(p, inputs)), has_aux=True
        )(params)
        return terms | {"loss": loss}, grads

    terms, grads = terms_and_grads(params, recorded_inputs())
    for name, value in terms.items():
        assert error(value, expected[f"{NAMES[adaln]}/{name}"]) < 5e-6, name

    flat = fb.unstack_layers(fb.flatten(grads))  # leaves a loop's names as they are
    grads = {k: np.asarray(g, np.float64).ravel() for k, g in flat.items()}
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    assert norm == pytest.approx(float(expected[f"{NAMES[adaln]}/grad_norm"]), rel=1e-5)
    prefix = f"{NAMES[adaln]}/grad_stats/"
    assert set(grads) == {k.removeprefix(prefix) for k in expected if k.startswith(prefix)}
    for name, g in grads.items():
        _, leaf_norm, projection = expected[prefix + name]
        assert np.linalg.norm(g) == pytest.approx(leaf_norm, rel=1e-4, abs=1e-7), name
        # A projection on `size` cosines of size 1 sums the rounding of all of them.
        slack = 1e-4 * leaf_norm * np.sqrt(g.size) + 1e-7
        assert np.sum(g * np.cos(np.arange(g.size))) == pytest.approx(projection, abs=slack), name


@pytest.mark.parametrize("system", ["mae", "dit", "maskdit"])
def test_other_systems_split_and_weigh_as_the_reference(system, monkeypatch):
    """The recorded predictions stand in for the network: only split, noising, masks and weights are at work."""
    z = golden("loss")
    config = fb.SYSTEMS[system]

    def recorded(_, image, t, u, mask_ratio):
        if int(t[0]) == 0:
            return z["pred_clean"][: len(image)], None, mask_of(u, mask_ratio)
        np.testing.assert_allclose(image, z["x_t"][: len(image)], atol=1e-6)
        return z["pred_noised"][: len(image)], None, mask_of(u, mask_ratio)

    def mask_of(u, ratio):
        hidden = np.argsort(np.argsort(u, axis=1), axis=1) >= int(16 * (1 - ratio))
        return np.kron(hidden.reshape(-1, 4, 4), np.ones((1, 4, 4)))[..., None].astype(np.float32)

    terms = fb.unified_terms(recorded, config, {}, recorded_inputs())
    assert error(terms["loss"], z[f"{system}/loss"]) < 5e-6


@pytest.mark.parametrize("case", ["umd_default", "mae"])
def test_published_learning_rate(case):
    z = {k.removeprefix(f"{case}/"): v for k, v in golden("lr_schedule").items() if k.startswith(f"{case}/")}
    optimiser = fb.published_optimiser(int(z["batch"]), int(z["ntrain"]), int(z["epochs"]))
    peak = float(z["peak_lr"]) * int(z["batch"]) / 256
    # Weight decay alone moves a parameter of 1 under a zero gradient: by lr * 0.05 of it.
    params = {"kernel": jnp.ones(())}
    state = optimiser.init(params)

    @jax.jit
    def decay(step):
        at_step = jax.tree.map(lambda x: step if x.dtype == jnp.int32 else x, state)
        return -optimiser.update({"kernel": jnp.zeros(())}, at_step, params)[0]["kernel"]

    for step, lr in zip(z["steps"], z["lr"], strict=True):
        assert float(decay(jnp.int32(step)) / 0.05) == pytest.approx(float(lr), abs=2e-6 * peak)


def test_three_updates_are_the_reference_s():
    z, start = golden("adamw"), flat_params(True)
    optimiser = fb.adamw(peak_lr=0.05, warmup_steps=2, total_steps=10)  # the recorded run's
    params = fb.unflatten({k: jnp.asarray(v) for k, v in start.items()})

    @jax.jit
    def update(params, state, grads):
        updates, state = optimiser.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    assert {k: bool(v) for k, v in fb.flatten(fb.decayed(params)).items()} == {k: bool(z[f"decay/{k}"]) for k in start}
    state = optimiser.init(params)
    for i in (1, 2, 3):
        params, state = update(params, state, fb.unflatten({k: z[f"grad{i}/{k}"] for k in start}))
    moved = np.concatenate([np.ravel(v - start[k]) for k, v in fb.flatten(params).items()])
    wanted = np.concatenate([np.ravel(z[f"delta3_jit/{k}"]) for k in fb.flatten(params)])
    assert np.mean(np.abs(moved - wanted) < 2e-5) > 0.99  # the rounding of the bfloat16 moment may flip


def test_layer_names_go_both_ways():
    flat = flat_params(True)
    stacked = fb.stack_layers(flat)
    assert stacked["Encoder/ScanCheckpointEncoder1DBlock_0/Dense_0/kernel"].shape == (2, 32, 192)
    again = fb.unstack_layers(stacked)
    assert set(again) == set(flat)
    for name, leaf in flat.items():
        np.testing.assert_array_equal(again[name], leaf)


@pytest.mark.parametrize("variant", ["S", "B", "L"])
@pytest.mark.parametrize("system", ["umd", "mae"])
def test_published_sizes_and_names(system, variant):
    stats = json.loads((GOLDEN / "init_stats.json").read_text())
    baseline = fb.build(system, variant, patch=4, image_size=64)
    leaves = fb.flatten(jax.eval_shape(baseline.init, jax.random.key(0)))
    kind = " adaln" if system == "umd" else ""
    assert sum(leaf.size for leaf in leaves.values()) == stats["param_counts"][f"{variant}/4@64x3{kind} ncls=None"]
    if variant == "S":
        listed = stats["official_init_S4_64"][NAMES[system == "umd"]]
        expected = {k: tuple(v["shape"]) for k, v in listed.items() if not k.startswith("label_")}
        assert {k: v.shape for k, v in leaves.items()} == expected


@pytest.mark.parametrize("system", ["umd", "mae"])
def test_a_step_trains_and_consumes_its_state(system):
    optimiser = fb.adamw(1e-3, 1, 100)
    baseline = fb.build(system, TINY, patch=4, image_size=16, optimiser=optimiser)
    params = baseline.init(jax.random.key(0))
    first, opt_state = jax.tree.leaves(params)[0], optimiser.init(params)
    inputs = fb.draw(system, jax.random.key(1), batch=4, num_patches=16, image_shape=(16, 16, 3))
    losses = []
    for _ in range(8):
        params, opt_state, loss = baseline.train_step(params, opt_state, inputs)
        losses.append(float(loss))
    assert first.is_deleted()
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
