"""A noise level for each patch: with equal ones it is the plain objective, and every patch is told its own."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosinePath, CosineTable
from umd_eqx.core.predictions import PredictionType, X0Prediction
from umd_eqx.core.types import Batch
from umd_eqx.models import AbstractModel
from umd_eqx.objectives import MaskedDenoising, PatchNoise, Term, denoising, masked_denoising
from umd_eqx.objectives.patch_noise import PatchDraw

B, SIZE, CLASSES = 6, 8, 5
KEY = jax.random.key(1)
IMAGES = jax.random.normal(KEY, (B, SIZE, SIZE, 3))
BATCH = Batch(IMAGES, jnp.arange(B) % CLASSES, jnp.ones(B, bool))
MIXED = (Term("v", "visible", 0.3), Term("x0", "hidden", 0.7), Term("eps", "all", 0.2))

loss_of = eqx.filter_jit(lambda objective, model, path, draw: objective.loss(model, path, BATCH, draw))


@pytest.fixture(autouse=True)
def with_a_network():
    """A network adds biases (d) to tokens (n, d)."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    ("plain", "path"),
    [
        (denoising(), CosineTable()),
        (masked_denoising(), CosinePath()),
        (MaskedDenoising(MIXED, 0.5), CosinePath()),
    ],
)
@pytest.mark.parametrize("prediction", ["x0_eps", "v"])
def test_equal_times_give_the_objective_of_one_time(random_model, plain, path, prediction):
    model = random_model(SIZE, variant="mu/2", labels=True, registers=2, prediction=prediction)
    draw = plain.draw(KEY, model, path, IMAGES.shape)
    times = jnp.broadcast_to(draw.t[:, None], (B, model.num_patches))
    ours = PatchNoise(plain.terms, plain.mask_ratio)
    found = loss_of(ours, model, path, PatchDraw(times, draw.eps, draw.order, draw.drop_label))
    expected = loss_of(plain, model, path, draw)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)
    assert len(found[1]) == len(plain.terms)


def test_the_gradient_is_that_of_one_time_too(random_model):
    model, plain, path = random_model(SIZE, variant="mu/2", labels=True), denoising(), CosineTable()
    draw = plain.draw(KEY, model, path, IMAGES.shape)
    times = jnp.broadcast_to(draw.t[:, None], (B, model.num_patches))
    pairs = (PatchNoise(), PatchDraw(times, draw.eps, draw.order, draw.drop_label)), (plain, draw)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m, objective, draw: objective.loss(m, path, BATCH, draw)[0]))
    ours, theirs = (jax.tree.leaves(gradient(model, *pair)) for pair in pairs)
    scale = max(float(jnp.abs(leaf).max()) for leaf in theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * scale)


def test_each_patch_has_the_noise_of_its_own_time(random_model):
    """With the first patch clean, nothing of its noise is seen; with its time changed, the loss changes."""
    model, path = random_model(SIZE, variant="mu/4"), CosinePath()
    objective = PatchNoise((Term("x0", "all", 1.0),))
    draw = objective.draw(KEY, model, path, IMAGES.shape)
    clean = eqx.tree_at(lambda d: d.t, draw, draw.t.at[:, 0].set(0.0))
    other = eqx.tree_at(lambda d: d.eps, clean, clean.eps.at[:, :4, :4].add(3.0))  # the pixels of that patch
    elsewhere = eqx.tree_at(lambda d: d.eps, clean, clean.eps.at[:, 4:, 4:].add(3.0))
    losses = [float(loss_of(objective, model, path, each)[0]) for each in (draw, clean, other, elsewhere)]
    assert losses[1] == losses[2]
    assert abs(losses[1] - losses[0]) > 1e-6
    assert abs(losses[3] - losses[1]) > 1e-6


def test_times_are_drawn_for_each_patch_and_shared_in_a_share_of_the_images(random_model):
    model, shape = random_model(SIZE, variant="mu/2"), (4000, SIZE, SIZE, 3)
    draw = eqx.filter_eval_shape(PatchNoise().draw, KEY, model, CosineTable(), shape)
    assert draw.t.shape == (4000, 16)
    small = (4000, 1, 1, 1)  # the noise is not looked at
    t = np.asarray(PatchNoise(shared_prob=0.25).draw(KEY, model, CosinePath(), small).t)
    alike = (t == t[:, :1]).all(axis=1)
    assert np.mean(alike) == pytest.approx(0.25, abs=0.03)
    own = t[~alike]
    assert own.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(own[:, 0], own[:, 1])[0, 1]) < 0.08


def test_what_cannot_work_is_refused(random_model):
    for change, named in (({"shared_prob": 1.5}, "shared_prob"), ({"mask_ratio": 1.0}, "mask_ratio")):
        with pytest.raises(BadInput, match=named):
            dataclasses.replace(PatchNoise(), **change).validate(16, 8)
    assert (PatchNoise().denoises, PatchNoise().sees_clean_images) == (True, False)
    assert (PatchNoise().hides, PatchNoise(mask_ratio=0.5).hides, PatchNoise().predicts_visible_x0) == (0, 1, 1)


class Whole(AbstractModel):
    """A network without patches."""

    image_shape: tuple[int, int, int] = eqx.field(static=True, default=(SIZE, SIZE, 3))
    num_classes: int | None = eqx.field(static=True, default=None)
    prediction: PredictionType = eqx.field(static=True, default="x0")

    def __call__(self, x, cond, view=None, *, key=None) -> X0Prediction:
        return X0Prediction(x)


@pytest.mark.parametrize("conditioning", ["adaln", "shared-adaln"])
def test_a_network_with_a_time_for_each_patch_suits_it(random_model, conditioning):
    PatchNoise().require_suitable(random_model(SIZE, conditioning=conditioning), CosineTable())


def test_a_network_without_a_time_for_each_patch_is_refused(random_model):
    hint = r"Use a network with a time for each patch, such as the ViT with `model\.conditioning=adaln`"
    with pytest.raises(BadInput, match=rf"^model: AutoEncoder accepts one time for the whole image only\. {hint}"):
        PatchNoise()(random_model(SIZE, conditioning="token"), CosineTable(), BATCH, KEY)
    with pytest.raises(BadInput, match=rf"^model: Whole has no patches to draw a time for\. {hint}"):
        PatchNoise()(Whole(), CosineTable(), BATCH, KEY)
