import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import (
    MAX_FINAL_SIGNAL,
    AbstractDiscretePath,
    AbstractSmoothPath,
    Clean,
    CosinePath,
    CosineTable,
    LinearTable,
    RectifiedFlow,
    SmoothTable,
    smooth,
)

TABLES = {"cosine table": CosineTable(), "linear table": LinearTable()}
FORMULAS = {"cosine": CosinePath(), "rectified flow": RectifiedFlow()}
SMOOTH = FORMULAS | {f"smooth {name}": SmoothTable(table) for name, table in TABLES.items()}
PATHS = TABLES | SMOOTH
VARIANCE_PRESERVING = {name: path for name, path in PATHS.items() if not isinstance(path, RectifiedFlow)}

SHAPE = (2, 2, 1)
X0 = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
EPS = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CosineTable(0), "path.steps"),
        (LinearTable(-3), "path.steps"),
        (CosinePath(0.5, 0.2), "path.t_min"),
        (RectifiedFlow(-0.1, 1.0), "path.t_min"),
        (SmoothTable(CosineTable(1)), "path.table.steps"),
        # Those that leave something of the image at the end.
        (CosineTable(1), "path.steps"),
        (LinearTable(2), "path.steps"),
        (CosinePath(t_max=0.9), "path.t_max"),
        (RectifiedFlow(t_max=0.95), "path.t_max"),
        (SmoothTable(LinearTable(2)), "path.table.steps"),
        (SmoothTable(CosineTable(), t_max=0.9), "path.t_max"),
    ],
)
def test_a_path_that_cannot_work_is_refused(path, field):
    with pytest.raises(BadInput) as error:
        path.validate()
    assert error.value.field == field


@pytest.mark.parametrize(
    "path",
    [*PATHS.values(), smooth(LinearTable()), LinearTable(3), LinearTable(100), CosineTable(3), Clean()],
    ids=repr,
)
def test_a_path_that_ends_in_noise_is_accepted(path):
    path.validate()
    if not isinstance(path, Clean):
        end = jnp.asarray(path.t_max if isinstance(path, AbstractSmoothPath) else 1.0)
        assert float(path.alpha(end) / path.sigma(end)) <= MAX_FINAL_SIGNAL


def test_a_path_is_validated_also_while_something_is_traced():
    def traced(x):
        for path in PATHS.values():
            path.validate()
        for path, field in ((LinearTable(2), "path.steps"), (CosinePath(t_max=0.9), "path.t_max")):
            with pytest.raises(BadInput, match=field):
                path.validate()
        return x

    jax.vmap(jax.jit(traced))(np.zeros(2, np.float32))


def test_a_linear_table_of_any_length_is_the_published_path():
    # abar(t) of 100 steps is nearly that of 1000: the betas are scaled, and a path of few steps ends in noise.
    short, published = (np.sqrt(LinearTable(steps).alphas_cumprod()) for steps in (100, 1000))
    np.testing.assert_allclose(short, published[9::10], atol=0.02)
    assert short[-1] == pytest.approx(0.0045, abs=1e-4)


def levels(path, times):
    """alpha and sigma at many times, in as many dimensions."""
    return jax.jit(lambda t: (jax.vmap(path.alpha)(t), jax.vmap(path.sigma)(t)))(jnp.asarray(times))


@jax.jit
def _conversions(path, t):
    x_t = path.interpolate(X0, EPS, t)
    v = path.v_from_x0_eps(X0, EPS, t)
    return {
        "x_t": x_t,
        "v": v,
        "x0": path.x0_from_eps(x_t, EPS, t),
        "eps": path.eps_from_x0(x_t, X0, t),
        "of v": path.x0_eps_from_v(x_t, v, t),
        "score": path.score_from_eps(EPS, t),
        "levels": (path.alpha(t), path.sigma(t)),
    }


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_leads_from_data_to_noise(path):
    is_table = isinstance(path, AbstractDiscretePath)
    grid = np.linspace(0 if is_table else path.t_min, 1 if is_table else path.t_max, 101, dtype=np.float32)
    alpha, sigma = map(np.asarray, levels(path, grid))
    assert np.all(np.diff(alpha) <= 0)
    assert np.all(np.diff(sigma) >= 0)
    assert alpha[0] > 0.998
    assert sigma[-1] > 0.995
    assert np.min(alpha) >= 0
    assert np.max(sigma) <= 1


@pytest.mark.parametrize("path", (TABLES | FORMULAS).values(), ids=TABLES | FORMULAS)
def test_time_0_is_clean_exactly(path):
    zero = jnp.asarray(0.0)
    assert (float(path.alpha(zero)), float(path.sigma(zero))) == (1, 0)
    assert float(path.network_time(zero)) == 0


@pytest.mark.parametrize("path", FORMULAS.values(), ids=FORMULAS)
def test_time_1_is_noise_exactly(path):
    one = jnp.asarray(1.0)
    assert (float(path.alpha(one)), float(path.sigma(one))) == (0, 1)


@pytest.mark.parametrize("path", VARIANCE_PRESERVING.values(), ids=VARIANCE_PRESERVING)
def test_variance_is_preserved(path):
    alpha, sigma = levels(path, np.linspace(0, 1, 4001, dtype=np.float32))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=2e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@given(st.integers(80, 4016).map(lambda i: i / 4096))
def test_conversions_are_undone_by_their_inverses(path, t):
    got = _conversions(path, jnp.asarray(t))
    alpha, sigma = got["levels"]
    np.testing.assert_allclose(got["x_t"], alpha * X0 + sigma * EPS, atol=1e-6)
    # A division by a level magnifies rounding by as much.
    np.testing.assert_allclose(got["x0"], X0, atol=2e-6 / float(alpha))
    np.testing.assert_allclose(got["eps"], EPS, atol=2e-6 / float(sigma))
    for recovered, truth in zip(got["of v"], (X0, EPS), strict=True):
        np.testing.assert_allclose(recovered, truth, atol=5e-6)


@given(st.integers(0, 4096).map(lambda i: i / 4096))
def test_v_of_rectified_flow_is_noise_minus_data(t):
    np.testing.assert_allclose(_conversions(RectifiedFlow(), jnp.asarray(t))["v"], EPS - X0, atol=1e-6)


@pytest.mark.parametrize("path", VARIANCE_PRESERVING.values(), ids=VARIANCE_PRESERVING)
def test_v_of_a_variance_preserving_path_is_that_of_salimans_and_ho(path):
    got = _conversions(path, jnp.asarray(0.3))
    alpha, sigma = got["levels"]
    np.testing.assert_allclose(got["v"], alpha * EPS - sigma * X0, atol=1e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_score_is_the_gradient_of_the_log_density(path):
    t = jnp.asarray(0.4)
    x_t = path.interpolate(X0, EPS, t)

    def log_density(x):
        return -0.5 * jnp.sum(((x - path.alpha(t) * X0) / path.sigma(t)) ** 2)

    np.testing.assert_allclose(jax.grad(log_density)(x_t), path.score_from_eps(EPS, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_step_of_a_table_is_looked_up_exactly(table):
    index = np.arange(1000, dtype=np.float32)
    times = (index + 1) / np.float32(1000)
    abar = table.alphas_cumprod()
    alpha, sigma = levels(table, times)
    np.testing.assert_array_equal(alpha, np.sqrt(abar).astype(np.float32))
    np.testing.assert_array_equal(sigma, np.sqrt(1 - abar).astype(np.float32))
    np.testing.assert_array_equal(jax.jit(jax.vmap(table.network_time))(jnp.asarray(times)), index + 1)


def test_a_short_table_tells_the_network_of_the_same_noise_times():
    times = np.arange(11, dtype=np.float32) / np.float32(10)
    network_times = jax.vmap(CosineTable(steps=10).network_time)(jnp.asarray(times))
    np.testing.assert_array_equal(network_times, np.arange(11) * 100)


@pytest.mark.parametrize("table", [*TABLES.values(), CosineTable(steps=7)])
def test_uniform_numbers_become_every_step_of_a_table_equally_often(table):
    u = (np.arange(20 * table.steps, dtype=np.float64) + 0.5) / (20 * table.steps)
    u = np.asarray([*u, 0.0, np.nextafter(np.float32(1), np.float32(0))], np.float32)
    times = np.asarray(jax.jit(jax.vmap(table.time_from_uniform))(jnp.asarray(u)))
    # Compiled, the division is a product with 1 / T, which may be off by one place: harmless, as look-ups round.
    np.testing.assert_allclose(times * table.steps, np.round(times * table.steps), rtol=2e-7)
    values, counts = np.unique(np.round(times * table.steps), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1, table.steps + 1))
    np.testing.assert_array_equal(counts, [21, *[20] * (table.steps - 2), 21])


@pytest.mark.parametrize("path", SMOOTH.values(), ids=SMOOTH)
def test_training_times_of_a_smooth_path_fill_its_ends_and_are_never_clean(path):
    u = jnp.asarray([0.0, 0.25, 0.5, 1 - 2**-24])
    times = np.asarray(jax.vmap(path.time_from_uniform)(u))
    span = path.t_max - path.t_min
    np.testing.assert_allclose(times, path.t_min + span * np.asarray(u), rtol=1e-6)
    assert 0 < times[0] <= times[-1] <= path.t_max
    np.testing.assert_allclose(jax.vmap(path.network_time)(jnp.asarray(times)), 1000 * times, rtol=1e-6)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_smoothed_path_passes_through_every_level_of_its_table(table):
    path = smooth(table)
    abar = table.alphas_cumprod()
    alpha, sigma = levels(path, np.arange(1, 1001, dtype=np.float32) / np.float32(1000))
    np.testing.assert_allclose(alpha, np.sqrt(abar), rtol=1e-5)
    np.testing.assert_allclose(sigma, np.sqrt(1 - abar), rtol=1e-5)


@pytest.mark.parametrize("path", SMOOTH.values(), ids=SMOOTH)
def test_rates_are_the_slopes_of_the_path(path):
    with jax.enable_x64(True):
        # Between the knots of a table, where the smoothed path is a polynomial.
        t, h = jnp.asarray([0.0123, 0.2004, 0.5007, 0.7512, 0.9496]), 1e-6
        ahead, behind = levels(path, t + h), levels(path, t - h)
        for rate, high, low in zip(jax.jit(jax.vmap(path.rates))(t), ahead, behind, strict=True):
            assert rate.dtype == jnp.float64
            np.testing.assert_allclose(rate, (high - low) / (2 * h), rtol=1e-6)


def test_rates_of_the_cosine_path_are_its_derivatives():
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 1.0, 11)
        d_alpha, d_sigma = jax.vmap(CosinePath().rates)(t)
        np.testing.assert_allclose(d_alpha, -np.pi / 2 * np.sin(np.pi * t / 2), atol=1e-14)
        np.testing.assert_allclose(d_sigma, np.pi / 2 * np.cos(np.pi * t / 2), atol=1e-14)


def test_v_of_the_cosine_path_is_its_velocity_up_to_half_pi():
    path, t = CosinePath(), jnp.asarray(0.37)
    velocity = jax.jvp(lambda t: path.interpolate(X0, EPS, t), (t,), (jnp.ones_like(t),))[1]
    np.testing.assert_allclose(velocity, np.pi / 2 * path.v_from_x0_eps(X0, EPS, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", SMOOTH.values(), ids=SMOOTH)
def test_log_snr_falls_and_is_that_of_the_levels(path):
    t = np.linspace(path.t_min, min(path.t_max, 0.999), 401, dtype=np.float32)
    log_snr = np.asarray(jax.jit(jax.vmap(path.log_snr))(jnp.asarray(t)))
    assert np.all(np.diff(log_snr) < 0)
    alpha, sigma = map(np.asarray, levels(path, t))
    np.testing.assert_allclose(log_snr, 2 * np.log(alpha / sigma), rtol=1e-4, atol=1e-3)


def test_a_path_is_its_own_configuration():
    assert dataclasses.replace(CosinePath(), t_max=0.9).time_from_uniform(jnp.asarray(1.0)) == jnp.float32(0.9)
    assert CosineTable() == CosineTable()
    assert CosineTable() != CosineTable(steps=10)


def test_a_training_time_is_that_of_a_clean_image_only_where_the_path_says_so():
    first = jnp.asarray(0.0)
    for path in (CosineTable(), LinearTable(), CosinePath(), RectifiedFlow(), smooth(CosineTable())):
        assert path.time_from_uniform(first) > 0
    for path in (Clean(), RectifiedFlow(t_min=0.0)):
        assert path.time_from_uniform(first) == 0
