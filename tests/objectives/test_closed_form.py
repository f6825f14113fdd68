"""The losses on Gaussian data with the best possible predictor: what they must come to is known."""

import functools
from itertools import combinations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import GaussianOracle

from umd_eqx.core.masking import View, num_kept
from umd_eqx.core.paths import CosinePath, CosineTable, LinearTable, RectifiedFlow
from umd_eqx.core.types import Batch
from umd_eqx.objectives import Draw, MaskedDenoising, Term, Unified, denoising, masked_denoising, masked_reconstruction

SHAPE, PATCHES = (2, 2, 2), 4
CHUNKS, IMAGES = 40, 400  # the loss of many small batches tells its own standard error
LEVELS = [(i + 1) / 1000 for i in (0, 19, 99, 199, 349, 499, 649, 799, 949, 999)]
PATHS = {"cosine table": CosineTable(), "linear": LinearTable(), "cosine": CosinePath(), "flow": RectifiedFlow()}
# Weights that nobody would choose, so that none can be taken for another.
UNEVEN = MaskedDenoising((Term("x0", "hidden", 0.3), Term("eps", "visible", 0.9), Term("x0", "visible", 2.5)), 0.25)
VELOCITY = MaskedDenoising((Term("v", "all", 1.0),), 0.0)
CASES = [
    *[(denoising(), name) for name in PATHS],
    *[(masked_denoising(), name) for name in ("cosine table", "flow")],
    *[(VELOCITY, name) for name in ("cosine", "flow")],
    (UNEVEN, "cosine table"),
]


@functools.cache
def oracle(name: str) -> GaussianOracle:
    with jax.numpy_dtype_promotion("standard"):
        return GaussianOracle.random(PATHS[name], SHAPE)


@functools.cache
def losses(objective, name: str):
    """A compiled function of the noise level: the losses of many batches."""
    model = oracle(name)

    def of_batch(t, key):
        keys = jax.random.split(key, 3)
        images = model.sample(keys[0], IMAGES)
        orders = jax.vmap(lambda key: jax.random.permutation(key, PATCHES))(jax.random.split(keys[2], IMAGES))
        eps = jax.random.normal(keys[1], images.shape)
        draw = Draw(jnp.full(IMAGES, t), eps, orders, jnp.zeros(IMAGES, bool))
        batch = Batch(images, jnp.zeros(IMAGES, int), jnp.ones(IMAGES, bool))
        return objective.loss(model, PATHS[name], batch, draw)[0]

    return jax.jit(lambda t: jax.lax.map(lambda key: of_batch(t, key), jax.random.split(jax.random.key(0), CHUNKS)))


def expected(objective: MaskedDenoising, name: str, t: float) -> float:
    """The weighted sum of the terms' expected errors, the mean over all masks of the ratio, in float64."""
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), oracle(name))
        errors = eqx.filter_jit(model.errors)
        kept, totals = num_kept(PATCHES, objective.mask_ratio), []
        for visible in combinations(range(PATCHES), kept):
            hidden = [i for i in range(PATCHES) if i not in visible]
            view = View(jnp.asarray([*visible, *hidden]), kept)
            error = errors(jnp.asarray(np.float32(t), jnp.float64), view)
            regions = {"visible": list(visible), "hidden": hidden, "all": list(range(PATCHES))}
            total = 0.0
            for term in objective.terms:
                # Of the whole image, alpha e_x0 + sigma e_eps = 0, so that an error of v is one of x0 over sigma.
                head = "x0" if term.head == "v" else term.head
                scale = float(model.path.sigma(jnp.asarray(t))) ** -2 if term.head == "v" else 1.0
                per_patch = np.asarray(getattr(error, head)).reshape(PATCHES, -1)
                total += term.weight * scale * per_patch[regions[term.region]].mean()
            totals.append(total)
    return float(np.mean(totals))


def assert_is_the_mean(samples, truth: float):
    samples = np.asarray(samples, np.float64)
    standard_error = samples.std(ddof=1) / len(samples) ** 0.5
    assert standard_error < 0.02 * truth  # a weight that is 10 % off is seen
    assert abs(samples.mean() - truth) < 4 * standard_error


@pytest.mark.parametrize(("objective", "name"), CASES)
def test_the_loss_of_the_best_predictor_is_what_theory_says(objective, name):
    for t in LEVELS:
        assert_is_the_mean(losses(objective, name)(jnp.asarray(t, jnp.float32)), expected(objective, name, t))


def test_reconstruction_is_conditioning_on_the_visible_pixels_whatever_the_time():
    objective = masked_reconstruction()
    truth = expected(objective, "flow", 0.0)
    for t in (0.2, 0.9):
        assert_is_the_mean(losses(objective, "flow")(jnp.asarray(t)), truth)


def test_the_unified_loss_weighs_both_by_their_images():
    objective = Unified(masked_denoising(), masked_reconstruction(), no_noise_prob=0.25)
    truth = 0.75 * expected(objective.denoising, "flow", 0.4) + 0.25 * expected(objective.reconstruction, "flow", 0.0)
    assert_is_the_mean(losses(objective, "flow")(jnp.asarray(0.4)), truth)


def test_no_constant_shift_of_the_predictions_has_less_loss():
    # The oracle is right about its own data: moving its mean away only costs.
    model, objective = oracle("flow"), denoising()
    best = np.mean(losses(objective, "flow")(jnp.asarray(0.5)))
    truth = expected(objective, "flow", 0.5)
    shifted = eqx.tree_at(lambda m: m.mean, model, model.mean + 0.3)
    eps = jax.random.normal(jax.random.key(1), (4000, *SHAPE))
    batch = Batch(model.sample(jax.random.key(2), 4000), jnp.zeros(4000, int), jnp.ones(4000, bool))
    order = jnp.broadcast_to(jnp.arange(PATCHES)[None], (4000, PATCHES))
    draw = Draw(jnp.full(4000, 0.5), eps, order, jnp.zeros(4000, bool))
    assert eqx.filter_jit(objective.loss)(shifted, RectifiedFlow(), batch, draw)[0] > 1.05 * truth
    assert best == pytest.approx(truth, rel=0.02)
