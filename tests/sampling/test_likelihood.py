"""Bits per dimension against the Gaussian's, for which the exact network is known."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import GaussianOracle

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosinePath, CosineTable, RectifiedFlow, smooth
from umd_eqx.sampling import ModelDenoiser
from umd_eqx.sampling.denoisers import end_times
from umd_eqx.sampling.likelihood import bits_of_pixel_values, bits_per_dim

SHAPE = (2, 2, 2)
KEY = jax.random.key(0)


@eqx.filter_jit
def measured(model, path, images, keys, head="v", **options):
    """Bits a dimension of many images, with a key each."""
    denoiser = ModelDenoiser(model, path, model.cond(0), head=head)
    return jax.vmap(lambda x, key: bits_per_dim(denoiser, x, key, **options))(images, keys)


def normal_bits(mean, covariance, images):
    """-log2 N(x; mean, covariance) / dimensions, in float64."""
    mean, covariance = np.asarray(mean, np.float64).reshape(-1), np.asarray(covariance, np.float64)
    off = np.asarray(images, np.float64).reshape(len(images), -1) - mean
    squares = np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off)
    nats = 0.5 * (squares + np.linalg.slogdet(covariance)[1] + mean.size * math.log(2 * math.pi))
    return nats / mean.size / math.log(2)


def gaussian_bits(model, path, images, *, time=None):
    """What the Gaussian of the data gives, or that of a time with its noise in it."""
    alpha, sigma = 1.0, 0.0
    if time is not None:
        alpha, sigma = (float(level(jnp.asarray(time))) for level in (path.alpha, path.sigma))
    covariance = alpha**2 * np.asarray(model.covariance, np.float64)
    return normal_bits(alpha * np.asarray(model.mean), covariance + sigma**2 * np.eye(covariance.shape[0]), images)


def oracle(path, shape=SHAPE):
    model = GaussianOracle.random(path, shape)
    return model, model.sample(jax.random.key(1), 4)


# (path, tolerance): the cosine path goes on to where as good as nothing of the image is left.
PATHS = [
    pytest.param(CosinePath(t_max=0.9999), 1e-4, id="cosine"),
    pytest.param(RectifiedFlow(), 1e-4, id="rectified flow"),
    pytest.param(smooth(CosineTable()), 1e-6, id="smooth table", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("path", "tolerance"), PATHS)
def test_with_the_exact_trace_it_is_the_gaussians(path, tolerance):
    model, images = oracle(path)
    bits = measured(model, path, images, jax.random.split(KEY, 4), trace="exact", rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(bits, gaussian_bits(model, path, images, time=end_times(path, "v")[0]), atol=1e-3)
    # The least noise of these paths is nothing beside the least variance of these data.
    np.testing.assert_allclose(bits, gaussian_bits(model, path, images), atol=1e-2)


def flow_bits(model, images, early, late):
    """On the rectified flow between two times: N(0, late^2 I), brought back along the exact, linear ODE."""
    values, axes = np.linalg.eigh(np.asarray(model.covariance, np.float64))
    before, after = (np.sqrt((1 - t) ** 2 * values + t**2) for t in (early, late))
    mean = np.asarray(model.mean, np.float64).reshape(-1)
    off = np.asarray(images, np.float64).reshape(len(images), -1) - (1 - early) * mean
    ends = off @ (axes * (after / before)) @ axes.T + (1 - late) * mean
    prior = normal_bits(np.zeros(mean.size), late**2 * np.eye(mean.size), ends)
    return prior - np.mean(np.log2(after / before))


def test_what_is_left_of_the_image_at_the_last_time_is_left_out():
    path = RectifiedFlow(t_min=0.1, t_max=0.9)
    model, images = oracle(path)
    bits = measured(model, path, images, jax.random.split(KEY, 4), trace="exact", rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bits, flow_bits(model, images, 0.1, 0.9), atol=1e-3)
    assert np.abs(bits - gaussian_bits(model, path, images, time=0.1)).max() > 0.01


def test_hutchinson_is_right_on_average_and_scatters_less_with_more_probes():
    path = RectifiedFlow()
    model, images = oracle(path)
    expected = gaussian_bits(model, path, images[:1], time=end_times(path, "v")[0])
    spread = {}
    for probes in (1, 16):
        same = jnp.broadcast_to(images[:1], (128, *SHAPE))
        bits = measured(model, path, same, jax.random.split(KEY, 128), probes=probes, steps=64, solver="heun")
        error = np.std(bits) / math.sqrt(128)
        # Four standard errors, and what so few steps leave.
        assert abs(np.mean(bits) - expected[0]) < 4 * error + 2e-3
        spread[probes] = np.std(bits)
    assert 3.0 < spread[1] / spread[16] < 5.0
    assert spread[1] > 0.01


def test_hutchinson_is_exact_where_values_do_not_mix():
    path = RectifiedFlow()
    model = GaussianOracle(path, jnp.full(SHAPE, 0.3), jnp.diag(jnp.linspace(0.1, 1.0, 8)))
    images, keys = model.sample(jax.random.key(1), 2), jax.random.split(KEY, 2)
    traces = ("hutchinson", "exact")
    bits = [measured(model, path, images, keys, trace=trace, steps=8, solver="heun") for trace in traces]
    np.testing.assert_allclose(*bits, rtol=1e-5)


def test_the_error_of_heuns_steps_falls_with_their_square():
    path = RectifiedFlow(t_min=0.1, t_max=0.9)
    model, images = oracle(path, (1, 2, 1))
    expected, errors = flow_bits(model, images, 0.1, 0.9), []
    for steps in (16, 32):
        options = {"trace": "exact", "steps": steps, "solver": "heun"}
        bits = measured(model, path, images, jax.random.split(KEY, 4), **options)
        errors.append(np.abs(bits - expected).max())
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.3
    assert errors[1] > 1e-5  # not rounding


@pytest.mark.parametrize(("head", "solver"), [("eps", "dopri5"), ("x0", "heun")])
def test_every_head_of_an_exact_network_says_the_same(head, solver):
    path = RectifiedFlow()
    model, images = oracle(path, (1, 2, 1))
    options = {"trace": "exact", "head": head, "solver": solver, "rtol": 1e-4, "atol": 1e-4}
    bits = measured(model, path, images[:2], jax.random.split(KEY, 2), **options)
    assert end_times(path, "eps")[1] < 1.0  # where that head would divide by zero
    np.testing.assert_allclose(bits, gaussian_bits(model, path, images[:2]), atol=5e-3)


def test_a_network_of_the_project_has_a_likelihood_for_each_label(random_model):
    path, model = RectifiedFlow(), random_model(8, labels=True)
    x = jnp.linspace(-1.0, 1.0, 8 * 8 * 3).reshape(8, 8, 3)

    @eqx.filter_jit
    def of_label(y, key):
        return bits_per_dim(ModelDenoiser(model, path, model.cond(y)), x, key, steps=2, solver="heun")

    one, other = (float(of_label(jnp.asarray(y), KEY)) for y in (0, 3))
    assert np.isfinite([one, other]).all()
    assert one != other
    assert one != float(of_label(jnp.asarray(0), jax.random.key(1)))


def test_grey_levels_drawn_evenly_take_eight_bits():
    # Each spread over its bin, they are uniform on an interval of length 256 / 127.5.
    assert float(bits_of_pixel_values(jnp.asarray(math.log2(256 / 127.5)))) == pytest.approx(8.0)


def test_a_table_is_refused():
    with pytest.raises(BadInput, match=r"smooth\(path\)") as error:
        bits_per_dim(ModelDenoiser(oracle(CosineTable())[0], CosineTable()), jnp.zeros(SHAPE), KEY)
    assert error.value.field == "path"


@pytest.mark.parametrize(("field", "options"), [("probes", {"probes": 0}), ("steps", {"steps": 0})])
def test_a_count_that_cannot_work_is_refused(field, options):
    with pytest.raises(BadInput, match="0 is too small") as error:
        bits_per_dim(ModelDenoiser(oracle(RectifiedFlow())[0], RectifiedFlow()), jnp.zeros(SHAPE), KEY, **options)
    assert error.value.field == field
