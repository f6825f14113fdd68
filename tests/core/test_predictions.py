"""The types of prediction are converted into one another by nothing but the algebra of the path."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracle import GaussianOracle
from sampling.known import run

from umd_eqx.core.paths import AbstractDiscretePath, CosinePath, CosineTable, LinearTable, RectifiedFlow
from umd_eqx.core.predictions import MIN_SIGMA, VPrediction, X0EpsPrediction, X0Prediction
from umd_eqx.sampling import DDIM, DPMSolverPP, Heun, ModelDenoiser, UniformGrid

HEADS = ("x0", "eps", "v")
PATHS = {
    "cosine table": CosineTable(),
    "linear table": LinearTable(),
    "cosine": CosinePath(),
    "rectified flow": RectifiedFlow(),
}
EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
IMAGES = arrays(np.float64, (2, 1, 2), elements=st.floats(-3, 3))
# Never 1, where eps decides nothing on a path that ends in pure noise.
TIMES = st.integers(1, 999).map(lambda step: step / 1000)


class Levels(NamedTuple):
    """The numbers of a path at one time, in float64."""

    alpha: float
    sigma: float
    a: float
    b: float

    @classmethod
    def at(cls, path, t) -> "Levels":
        return cls(*(float(number) for number in _numbers(path, t)))


@eqx.filter_jit
def _numbers(path, t):
    return path.alpha(t), path.sigma(t), *path.velocity_weights(t)


def by_head(levels: Levels, x0, eps) -> dict[str, jax.Array]:
    """The three quantities of one pair of ends."""
    return {"x0": x0, "eps": eps, "v": levels.a * eps - levels.b * x0}


@eqx.filter_jit
def read(prediction, path, x_t, t) -> dict:
    return {head: prediction.read(head, path, x_t, t) for head in HEADS}


@eqx.filter_jit
def asked(prediction, path, x_t, t, x0, eps) -> dict:
    """Everything that may be asked of a prediction, by head."""
    return {
        head: (
            prediction.read(head, path, x_t, t),
            prediction.denoised(head, path, x_t, t),
            prediction.error(head, path, x0, eps, t),
        )
        for head in HEADS
    }


def close(found, expected, path):
    """To the rounding of the numbers of a path, which a table has in float32."""
    rtol = 1e-6 if isinstance(path, AbstractDiscretePath) else 1e-9
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-8)


def check(prediction, path, x_t, t, believed, truth):
    """Reads, denoised ends and errors are those of what the prediction amounts to."""
    for head, (quantity, ends, error) in asked(prediction, path, x_t, t, truth["x0"], truth["eps"]).items():
        close(quantity, believed[head], path)
        close(ends.x0, believed["x0"], path)
        close(ends.eps, believed["eps"], path)
        weight = 1.0
        if isinstance(prediction, X0Prediction) and head != "x0":
            weight = min(1.0, Levels.at(path, t).sigma / MIN_SIGMA)
        close(error, weight * (believed[head] - truth[head]), path)


@EVERY_PATH
@given(IMAGES, IMAGES, IMAGES, TIMES)
def test_every_type_amounts_to_what_the_path_says(path, x0, eps, wrong, time):
    with jax.enable_x64(True):
        x0, eps, wrong, t = jnp.asarray(x0), jnp.asarray(eps), jnp.asarray(wrong), jnp.asarray(time)
        levels = Levels.at(path, t)
        alpha, sigma, a, b = levels
        truth, x_t = by_head(levels, x0, eps), alpha * x0 + sigma * eps
        # A clean image that is wrong by so much has a noise that is wrong the other way: together they are x_t.
        by_x0 = by_head(levels, x0 + wrong, eps - alpha / sigma * wrong)
        check(X0Prediction(by_x0["x0"]), path, x_t, t, by_x0, truth)
        # An error of v is one along (-sigma, alpha), the only direction that leaves x_t as it is.
        along = wrong / (alpha * a + sigma * b)
        by_v = by_head(levels, x0 - sigma * along, eps + alpha * along)
        close(by_v["v"], truth["v"] + wrong, path)
        check(VPrediction(by_v["v"]), path, x_t, t, by_v, truth)
        # Two outputs that agree with x_t are one.
        for believed in (by_x0, by_v):
            check(X0EpsPrediction(believed["x0"], believed["eps"]), path, x_t, t, believed, truth)


@EVERY_PATH
@given(IMAGES, IMAGES, TIMES)
def test_one_type_read_as_another_is_the_same(path, x_t, said, time):
    with jax.enable_x64(True):
        x_t, said, t = jnp.asarray(x_t), jnp.asarray(said), jnp.asarray(time)
        for prediction in (X0Prediction(said), VPrediction(said)):
            first = read(prediction, path, x_t, t)
            others = (X0Prediction(first["x0"]), VPrediction(first["v"]), X0EpsPrediction(first["x0"], first["eps"]))
            for found in (read(other, path, x_t, t) for other in others):
                for head in HEADS:
                    # From a clean image to the noise the rounding of a table is divided by its least sigma, 0.006.
                    atol = 1e-4 if isinstance(path, AbstractDiscretePath) else 1e-8
                    np.testing.assert_allclose(found[head], first[head], rtol=1e-6, atol=atol)


@pytest.mark.parametrize("head", HEADS)
def test_of_two_outputs_that_contradict_each_other_the_head_decides(head):
    path, t = RectifiedFlow(), jnp.asarray(0.6)
    x_t, x0, eps = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    prediction = X0EpsPrediction(x0, eps)
    ends = prediction.denoised(head, path, x_t, t)
    np.testing.assert_allclose(path.interpolate(ends.x0, ends.eps, t), x_t, atol=1e-6)
    levels = Levels.at(path, t)
    found, said = by_head(levels, ends.x0, ends.eps), by_head(levels, x0, eps)
    for each in HEADS:
        assert np.allclose(found[each], said[each], atol=1e-6) == (each == head)
        np.testing.assert_allclose(prediction.read(each, path, x_t, t), said[each], atol=1e-6)


@given(
    arrays(np.float32, (2, 1, 2), elements=st.floats(-3, 3, width=32)),
    arrays(np.float32, (2, 1, 2), elements=st.floats(-3, 3, width=32)),
    st.floats(2**-10, 1.0, width=32),
)
def test_the_velocity_of_a_clean_image_is_clamped_near_the_data(x0, said, time):
    # Li and He 2025 in our time, in which v = (x_t - x0) / t: v_hat - v = -(x0_hat - x0) / t, with t at least 0.05.
    path, t = RectifiedFlow(), jnp.asarray(time, jnp.float32)
    error = X0Prediction(jnp.asarray(said)).error("v", path, jnp.asarray(x0), jnp.ones_like(x0), t)
    np.testing.assert_allclose(error, (said - x0) / -max(np.float32(time), np.float32(0.05)), rtol=3e-7, atol=1e-30)


# Each along a path of its own, so that tables, formulas, and pure noise at the end are among them.
SAMPLERS = {
    "ddim": (DDIM(6, 1.0, UniformGrid(), head="v", clip=False), CosineTable()),
    "dpmpp": (DPMSolverPP(6, head="v", clip=False), RectifiedFlow()),
    "heun": (Heun(6, head="v", clip=False), CosinePath()),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_makes_the_same_images_of_every_type(name):
    sampler, path = SAMPLERS[name]
    oracle = GaussianOracle.random(path, (2, 2, 1))
    noise, key = jax.random.normal(jax.random.key(0), (8, 2, 2, 1)), jax.random.key(1)
    published = run(sampler, oracle, path, noise, key)
    assert published.std() > 0.1
    for prediction in ("x0", "v"):
        other = run(sampler, dataclasses.replace(oracle, prediction=prediction), path, noise, key)
        np.testing.assert_allclose(other, published, atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_where_there_is_one_output_no_head_divides_by_alpha(prediction):
    # The head eps may not be asked at t = 1 of a network with two outputs; here it makes no difference.
    path = RectifiedFlow()
    model = GaussianOracle.random(path, (2, 2, 1))
    assert ModelDenoiser(model, path, head="eps").ends[1] < 1.0
    model = dataclasses.replace(model, prediction=prediction)
    x_t, t = jax.random.normal(jax.random.key(0), (2, 2, 1)), jnp.asarray(1.0)
    denoisers = [ModelDenoiser(model, path, head=head) for head in HEADS]
    assert {denoiser.ends for denoiser in denoisers} == {(path.t_min, 1.0)}
    first, *others = (denoiser(x_t, t) for denoiser in denoisers)
    assert np.isfinite(first.x0).all()
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)
