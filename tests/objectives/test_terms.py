"""The published objectives on images small enough to compute by hand."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import View
from umd_eqx.core.paths import CosineTable, RectifiedFlow
from umd_eqx.core.predictions import PredictionType, X0EpsPrediction
from umd_eqx.core.types import NO_CLASS, AbstractCond, Batch, Cond, Image, Label, Representation
from umd_eqx.models import AbstractPatchModel
from umd_eqx.objectives import (
    Draw,
    MaskedDenoising,
    Term,
    denoising,
    masked_denoising,
    masked_reconstruction,
    unified,
)

B, SHAPE, N = 8, (2, 4, 1), 8  # patches of one pixel
RNG = np.random.default_rng(0)
PREDICTED_X0, PREDICTED_EPS = RNG.normal(size=(2, *SHAPE)).astype(np.float32)
IMAGES, EPS = RNG.normal(size=(2, B, *SHAPE)).astype(np.float32)
ORDERS = np.stack([RNG.permutation(N) for _ in range(B)])
TIMES = np.asarray([1, 137, 500, 999, 20, 300, 700, 1000], np.float32) / np.float32(1000)
PATH = CosineTable()
BATCH = Batch(jnp.asarray(IMAGES), jnp.arange(B), jnp.ones(B, bool))
DRAW = Draw(jnp.asarray(TIMES), jnp.asarray(EPS), jnp.asarray(ORDERS), jnp.asarray([0, 1] * 4, bool))


class Fixed(AbstractPatchModel):
    """Always predicts the same."""

    x0: Image
    eps: Image
    num_classes: int | None = eqx.field(static=True, default=None)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)
    patch: int = eqx.field(static=True, default=1)
    num_patches: int = eqx.field(static=True, default=N)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    def cond(self, y: Label = NO_CLASS) -> Cond:
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x: Image, cond: AbstractCond, view: View | None = None, *, key=None) -> X0EpsPrediction:
        return X0EpsPrediction(self.x0, self.eps)

    def represent(self, x: Image, cond: AbstractCond) -> Representation:
        raise NotImplementedError


class Echo(AbstractPatchModel):
    """Predicts one number everywhere, of what it is told. On blank images without noise its loss is the square."""

    tells: str = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True, default=100)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)
    patch: int = eqx.field(static=True, default=1)
    num_patches: int = eqx.field(static=True, default=N)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    def cond(self, y: Label = NO_CLASS) -> Cond:
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x: Image, cond: AbstractCond, view: View | None = None, *, key=None) -> X0EpsPrediction:
        kept = jnp.asarray(self.num_patches if view is None else view.kept)
        told = {"time": cond.t, "label": cond.y, "kept": kept}[self.tells].astype(jnp.float32)
        return X0EpsPrediction(jnp.full(x.shape, told), jnp.full(x.shape, told))

    def represent(self, x: Image, cond: AbstractCond) -> Representation:
        raise NotImplementedError


FIXED = Fixed(jnp.asarray(PREDICTED_X0), jnp.asarray(PREDICTED_EPS))


def by_hand(head: str, region: str, kept: int, images=range(B)) -> float:
    """The mean over images of the mean squared error over the region."""
    errors = []
    for i in images:
        difference = (PREDICTED_X0 - IMAGES[i]) if head == "x0" else (PREDICTED_EPS - EPS[i])
        pixels = {"all": range(N), "visible": ORDERS[i][:kept], "hidden": ORDERS[i][kept:]}[region]
        errors.append(np.mean([difference.reshape(-1)[p] ** 2 for p in pixels]))
    return float(np.mean(errors))


@eqx.filter_jit
def loss_of(objective, model, path=PATH, batch=BATCH, numbers=DRAW):
    """The loss and its parts, compiled."""
    return objective.loss(model, path, batch, numbers)


def loss_of_each(objective, model, batch=BATCH, numbers=DRAW, path=PATH) -> np.ndarray:
    """The losses of batches of one image each."""
    one = jax.tree.map(lambda leaf: leaf[:, None], (batch, numbers))
    return np.asarray(jax.jit(jax.vmap(lambda pair: objective.loss(model, path, *pair)[0]))(one))


def told(objective: MaskedDenoising, model: Echo) -> np.ndarray:
    """What the model is told of each image."""
    blank = eqx.tree_at(lambda b: b.image, BATCH, jnp.zeros_like(BATCH.image))
    silent = eqx.tree_at(lambda d: d.eps, DRAW, jnp.zeros_like(DRAW.eps))
    return np.sqrt(loss_of_each(objective, model, blank, silent))


@pytest.mark.parametrize(
    ("objective", "terms"),
    [
        (masked_reconstruction(), {"x0_hidden": (1.0, 2)}),
        (masked_reconstruction(0.5), {"x0_hidden": (1.0, 4)}),
        (denoising(), {"x0_all": (0.5, 8), "eps_all": (0.5, 8)}),
        (masked_denoising(), {"x0_hidden": (0.5, 4), "eps_visible": (0.5, 4)}),
        (masked_denoising(0.375), {"x0_hidden": (0.5, 5), "eps_visible": (0.5, 5)}),
    ],
)
def test_each_published_loss_by_hand(objective, terms):
    loss, metrics = loss_of(objective, FIXED)
    assert metrics.keys() == terms.keys()
    for name, (_, kept) in terms.items():
        assert float(metrics[name]) == pytest.approx(by_hand(*name.split("_"), kept), rel=1e-5)
    expected = sum(weight * by_hand(*name.split("_"), kept) for name, (weight, kept) in terms.items())
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_unified_loss_by_hand():
    # Half of 8: every second image is clean.
    loss, metrics = loss_of(unified(), FIXED)
    noisy, clean = range(0, B, 2), range(1, B, 2)
    expected = {
        "denoising/x0_hidden": by_hand("x0", "hidden", 5, noisy),
        "denoising/eps_visible": by_hand("eps", "visible", 5, noisy),
        "reconstruction/x0_hidden": by_hand("x0", "hidden", 2, clean),
    }
    expected["denoising/loss"] = (expected["denoising/x0_hidden"] + expected["denoising/eps_visible"]) / 2
    expected["reconstruction/loss"] = expected["reconstruction/x0_hidden"]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx((expected["denoising/loss"] + expected["reconstruction/loss"]) / 2, rel=1e-5)


def test_a_velocity_term_is_held_to_the_paths_own_v():
    objective = MaskedDenoising((Term("v", "all", 1.0),), 0.0)
    difference = (PREDICTED_EPS - EPS) - (PREDICTED_X0 - IMAGES)  # rectified flow: v = eps - x0
    loss, metrics = loss_of(objective, FIXED, RectifiedFlow())
    assert float(loss) == pytest.approx(float(np.mean(difference**2)), rel=1e-5)
    assert list(metrics) == ["v_all"]


@pytest.mark.parametrize("objective", [masked_reconstruction(), denoising(), masked_denoising()])
def test_the_loss_is_the_mean_of_the_losses_of_its_images(objective):
    each = loss_of_each(objective, FIXED)
    assert each.std() > 0.01
    assert float(loss_of(objective, FIXED)[0]) == pytest.approx(float(each.mean()), rel=1e-5)


def test_a_noised_image_is_told_with_its_time_and_a_clean_one_as_clean():
    steps = np.round(TIMES * 1000)
    np.testing.assert_array_equal(told(denoising(), Echo("time")), steps)
    np.testing.assert_array_equal(told(masked_denoising(), Echo("time")), steps)
    np.testing.assert_array_equal(told(masked_reconstruction(), Echo("time")), np.zeros(B))


def test_the_model_sees_the_noised_image_only_where_there_is_noise():
    class Copy(Fixed):
        def __call__(self, x, cond, view=None, *, key=None):
            return X0EpsPrediction(x, x)

    copy = Copy(FIXED.x0, FIXED.eps)
    x_t = (1 - TIMES)[:, None, None, None] * IMAGES + TIMES[:, None, None, None] * EPS
    expected = np.mean((x_t - IMAGES) ** 2 + (x_t - EPS) ** 2, axis=(1, 2, 3)) / 2
    np.testing.assert_allclose(loss_of_each(denoising(), copy, path=RectifiedFlow()), expected, rtol=1e-5)
    np.testing.assert_array_equal(loss_of_each(masked_reconstruction(), copy, path=RectifiedFlow()), np.zeros(B))


def test_the_model_sees_as_many_patches_as_the_mask_leaves():
    for objective, kept in ((denoising(), 8), (masked_denoising(), 4), (masked_reconstruction(), 2)):
        np.testing.assert_array_equal(told(objective, Echo("kept")), [kept] * B)


def test_dropped_labels_become_no_class_and_clean_images_have_none():
    # The square of what was told is seen, so that `NO_CLASS` is its own opposite.
    labels = np.where(np.asarray(DRAW.drop_label), -NO_CLASS, np.arange(B))
    for objective in (denoising(), masked_denoising()):
        np.testing.assert_allclose(told(objective, Echo("label")), labels, rtol=1e-6)
    np.testing.assert_allclose(told(masked_reconstruction(), Echo("label")), [-NO_CLASS] * B, rtol=1e-6)


def test_a_label_of_data_that_is_not_a_class_is_never_taken_for_no_class():
    # Among five classes: what the network is told instead is a number for which its predictions are NaN.
    blank = eqx.tree_at(lambda b: b.image, BATCH, jnp.zeros_like(BATCH.image))
    labels = jnp.asarray([0, 4, 5, 6, 1000, NO_CLASS, -2, 3])
    batch = eqx.tree_at(lambda b: b.label, blank, labels)
    kept = eqx.tree_at(lambda d: (d.eps, d.drop_label), DRAW, (jnp.zeros_like(DRAW.eps), jnp.zeros(B, bool)))
    numbers = np.sqrt(loss_of_each(denoising(), Echo("label", num_classes=5), batch, kept))
    np.testing.assert_allclose(numbers, [0, 4, 6, 6, 6, 6, 6, 3], rtol=1e-6)


@pytest.mark.parametrize("objective", [denoising(), masked_reconstruction(), unified()])
def test_an_objective_called_is_its_loss_of_a_draw(objective):
    key = jax.random.key(3)
    numbers = objective.draw(key, FIXED, PATH, BATCH.image.shape)
    loss, metrics = eqx.filter_jit(objective)(FIXED, PATH, BATCH, key)
    same_loss, same_metrics = loss_of(objective, FIXED, PATH, BATCH, numbers)
    assert float(loss) == pytest.approx(float(same_loss), rel=1e-5)
    assert metrics.keys() == same_metrics.keys()
    assert float(loss) != pytest.approx(float(loss_of(objective, FIXED)[0]), rel=1e-5)


def refused(objective, field: str, match: str, num_patches: int = 16, batch_size: int = 256):
    with pytest.raises(BadInput, match=match) as refusal:
        objective.validate(num_patches, batch_size)
    assert refusal.value.field == field


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_mask_ratio_outside_its_range_is_refused_by_name(ratio):
    refused(masked_reconstruction(ratio), "objective.mask_ratio", "outside")
    refused(unified(mask_ratio=ratio), "objective.denoising.mask_ratio", "outside")
    refused(unified(mask_ratio_no_noise=ratio), "objective.reconstruction.mask_ratio", "outside")


def test_a_mask_ratio_that_leaves_a_term_nothing_is_refused_by_name():
    refused(masked_reconstruction(0.99), "objective.mask_ratio", "hides all 16 patches")
    refused(masked_denoising(0.0), "objective.mask_ratio", "hides no patch, but the term x0_hidden")
    refused(unified(mask_ratio=0.0), "objective.denoising.mask_ratio", "hides no patch")
    refused(unified(mask_ratio_no_noise=0.0), "objective.reconstruction.mask_ratio", "hides no patch")
    refused(MaskedDenoising(denoising().terms, 0.99), "objective.mask_ratio", "hides all")


def test_shares_that_are_none_are_refused_by_name():
    refused(MaskedDenoising(denoising().terms, 0.0, label_dropout=1.5), "objective.label_dropout", "outside")
    for share in (-0.5, 1.5, float("nan")):
        refused(unified(no_noise_prob=share), "objective.no_noise_prob", "outside")
    refused(unified(no_noise_prob=0.05), "objective.no_noise_prob", "less than one image", batch_size=16)


@pytest.mark.parametrize("objective", [masked_reconstruction(), denoising(), masked_denoising(), unified()])
def test_the_published_objectives_are_valid(objective):
    objective.validate(256, 1024)
    objective.validate(4, 16)


def test_a_part_without_images_is_not_asked():
    unified(mask_ratio=0.0, no_noise_prob=1.0).validate(16, 256)
    unified(mask_ratio_no_noise=0.0, no_noise_prob=0.0).validate(16, 256)


@pytest.mark.parametrize("count", [4, 16, 49, 64, 196, 256, 1024])
def test_the_way_out_of_a_refusal_is_one(count):
    def advice(objective, num_patches, batch_size) -> float:
        with pytest.raises(BadInput) as refusal:
            objective.validate(num_patches, batch_size)
        return float(re.search(r"Use at (?:least|most) ([0-9.e-]+)", str(refusal.value))[1].rstrip("."))

    masked_reconstruction(advice(masked_reconstruction(0.9999), count, 8)).validate(count, 8)
    masked_reconstruction(advice(masked_reconstruction(0.0), count, 8)).validate(count, 8)
    for batch_size in (count, 48, 96):
        unified(no_noise_prob=advice(unified(no_noise_prob=1e-4), 16, batch_size)).validate(16, batch_size)
