"""Samplers on Gaussian data with the exact network: where they arrive is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import GaussianOracle
from sampling.known import Mixture, flow_map, normal_quantile, run, single_pixel

from umd_eqx.core.paths import CosinePath, CosineTable, LinearTable, RectifiedFlow
from umd_eqx.sampling import (
    DDIM,
    Adaptive,
    DPMSolverPP,
    EDMGrid,
    Euler,
    Heun,
    LogSNRGrid,
    ModelDenoiser,
    ReverseSDE,
    UniformGrid,
)
from umd_eqx.sampling.denoisers import end_times
from umd_eqx.sampling.levels import levels

PATHS = {"cosine": CosinePath(), "rectified flow": RectifiedFlow()}
SHAPE = (2, 1, 1)
NOISE = jax.random.normal(jax.random.key(0), (32, *SHAPE))
KEY = jax.random.key(1)
PLAIN = {"head": "v", "clip": False}  # v needs no division at either end
# (sampler, grid, steps, order). DPM-Solver++ extrapolates in log(sigma / alpha): on even steps in t it shows its order
# late.
FIXED = {
    "euler": (Euler, UniformGrid(), 16, 1),
    "ddim": (lambda **kw: DDIM(eta=0.0, **kw), UniformGrid(), 16, 1),
    "heun": (Heun, UniformGrid(), 16, 2),
    "dpmpp": (DPMSolverPP, LogSNRGrid(), 32, 2),
    "dpmpp on EDM's grid": (DPMSolverPP, EDMGrid(), 32, 2),
}
SLOW = pytest.mark.slow
DEFAULT = {("euler", "cosine"), ("ddim", "cosine"), ("heun", "rectified flow"), ("dpmpp", "rectified flow")}
QUANTILES = jnp.asarray(normal_quantile((np.arange(200) + 0.5) / 200), jnp.float32)


def error(sampler, path, times) -> float:
    """Root mean square distance from where the exact flow arrives."""
    oracle = GaussianOracle.random(path, SHAPE)
    found = run(sampler, oracle, path, NOISE, KEY)
    return float(np.sqrt(np.mean((np.asarray(found) - flow_map(oracle, NOISE, times[0], times[-1])) ** 2)))


@pytest.mark.parametrize(
    ("name", "path"),
    [pytest.param(name, path, marks=SLOW if (name, path) not in DEFAULT else ()) for name in FIXED for path in PATHS],
)
def test_order_of_convergence(name, path):
    path, (make, grid, fewest, order) = PATHS[path], FIXED[name]
    errors = []
    for steps in (fewest, 2 * fewest):
        sampler = make(steps=steps, grid=grid, **PLAIN)
        errors.append(error(sampler, path, sampler.grid.times(path, steps, 2, end_times(path, "v"))))
    # One interval less than steps; the floor of float32 is far below.
    measured = np.log(errors[0] / errors[1]) / np.log((2 * fewest - 1) / (fewest - 1))
    assert order - 0.25 < measured < order + 0.4
    assert errors[1] < {1: 0.06, 2: 0.02}[order]


def mixture_error(sampler, path, variance) -> float:
    """Root mean square distance from where the exact flow of a mixture arrives, over the quantiles of the noise."""
    oracle, noise = Mixture.of(path, variance), QUANTILES[:, None, None, None]
    times = sampler.grid.times(path, sampler.steps, 1, end_times(path, "v"))
    found = np.asarray(run(sampler, oracle, path, noise, KEY)).reshape(-1)
    return float(
        np.sqrt(np.mean((found - oracle.flow_map(np.asarray(QUANTILES, np.float64), times[0], times[-1])) ** 2))
    )


@pytest.mark.parametrize(
    "path", [CosineTable(), pytest.param(LinearTable(), marks=SLOW), pytest.param(CosinePath(), marks=SLOW)], ids=repr
)
def test_even_steps_in_log_snr_serve_broad_and_sharp_data(path):
    for variance, most in ((0.02, 1.2e-3), (0.0005, 8e-4)):
        even = mixture_error(DPMSolverPP(64, **PLAIN), path, variance)
        in_time = [
            mixture_error(DPMSolverPP(64, UniformGrid(), **PLAIN, max_ratio=r), path, variance) for r in (1.0, 1e9)
        ]
        assert even < most
        assert even < 1.05 * min(in_time)  # at worst no better


def test_a_step_that_counts_no_longer_than_the_one_before_serves_even_steps_in_time():
    # Few of them, or broad data: the extrapolation over steps that grow overshoots. On even steps nothing changes.
    path = CosineTable()
    plain, held = (mixture_error(DPMSolverPP(16, UniformGrid(), **PLAIN, max_ratio=r), path, 0.02) for r in (1e9, 1.0))
    assert held < plain / 3
    path, grid = CosinePath(), LogSNRGrid()
    samplers, ends = (DPMSolverPP(16, grid, max_ratio=r) for r in (1.0, 1e9)), end_times(path, "eps")
    for given, plain in zip(*(sampler.weights(path, 1, ends) for sampler in samplers), strict=True):
        np.testing.assert_allclose(given, plain, atol=1e-9)


@pytest.mark.parametrize("method", ["tsit5", pytest.param("dopri5", marks=SLOW)])
def test_adaptive_reaches_its_tolerance(method):
    path = PATHS["rectified flow"]
    errors = [error(Adaptive(method, rtol, rtol, **PLAIN), path, (path.t_max, path.t_min)) for rtol in (1e-2, 1e-5)]
    assert errors[0] < 0.1
    assert errors[1] < 2e-4
    assert errors[1] < errors[0] / 100


def test_an_adaptive_solver_counts_its_calls():
    # Against a network that reports each call.
    path, calls = PATHS["cosine"], []

    class Counted(GaussianOracle):
        def __call__(self, x, cond, view=None, *, key=None):
            jax.debug.callback(lambda: calls.append(1))
            return super().__call__(x, cond, view)

    oracle = GaussianOracle.random(path, SHAPE)
    counted = Counted(path, oracle.mean, oracle.covariance)
    sampler = Adaptive("tsit5", 1e-3, 1e-3, **PLAIN)
    run_one = jax.jit(lambda noise: sampler(sampler.denoiser(counted, path), noise, KEY))
    run_one(NOISE[0]).block_until_ready()
    jax.effects_barrier()
    said = int(jax.jit(lambda noise: sampler.count(sampler.denoiser(oracle, path), noise))(NOISE[0]))
    assert len(calls) == said


def responses(sampler, path, steps) -> np.ndarray:
    """d sample / d (first noise, noise of each step), for one Gaussian pixel: the sampler is affine in them."""
    oracle = single_pixel(path)
    inputs = jnp.concatenate([jnp.zeros((1, steps + 1)), jnp.eye(steps + 1)])[..., None, None, None]
    return np.asarray(run(sampler, oracle, path, inputs[:, 0], KEY, inputs[:, 1:]), np.float64).reshape(-1)


@pytest.mark.parametrize("eta", [pytest.param(0.5, marks=SLOW), 1.0])
def test_ancestral_sampling_has_the_mean_and_variance_of_the_data(eta):
    path = CosinePath()
    biases = []
    for steps in (32, 64):
        found = responses(DDIM(steps, eta, UniformGrid(), **PLAIN), path, steps)
        variance = np.sum((found[1:] - found[0]) ** 2)
        assert found[0] == pytest.approx(0.4, abs=0.02)
        biases.append(abs(variance / 0.3 - 1.0))
    assert biases[1] < 0.11
    assert biases[1] < 0.7 * biases[0]  # it falls with the steps, as a bias of first order does


def test_ancestral_noise_is_that_of_the_posterior():
    # Ho et al. 2020, eq. 7: with eta = 1 and every step of the table, the noise is beta_tilde.
    table = CosineTable(50)
    _, of_x0, of_noise = DDIM(50, 1.0, UniformGrid()).weights(table, 8, end_times(table, "eps"))
    abar = table.alphas_cumprod()[::-1]
    previous = np.append(abar[1:], 1.0)
    beta = 1.0 - abar / previous
    np.testing.assert_allclose(of_noise**2, beta * (1 - previous) / (1 - abar), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(of_x0, np.sqrt(previous) * beta / (1 - abar), rtol=1e-9)


def test_the_reverse_sde_has_the_mean_and_variance_of_the_data():
    path, count = RectifiedFlow(), 4096
    oracle = single_pixel(path)
    found = run(ReverseSDE(64, **PLAIN), oracle, path, jax.random.normal(KEY, (count, 1, 1, 1)), jax.random.key(2))
    # Five standard errors, and a bias of first order.
    assert float(found.mean()) == pytest.approx(0.4, abs=5 * (0.3 / count) ** 0.5 + 0.02)
    assert float(found.var()) == pytest.approx(0.3, rel=5 * (2 / count) ** 0.5 + 0.05)


@pytest.mark.slow
def test_the_reverse_sde_forgets_its_first_noise():
    # An ODE maps one noise to one image; the SDE makes a new draw of the data of it.
    path = CosinePath()
    noise = jnp.zeros((512, 1, 1, 1))
    assert float(run(ReverseSDE(64, **PLAIN), single_pixel(path), path, noise, KEY).var()) > 0.2
    assert float(run(DDIM(64, 0.0, EDMGrid(), **PLAIN), single_pixel(path), path, noise, KEY).var()) < 1e-6


@pytest.mark.parametrize("path", [CosinePath(), CosineTable()], ids=["cosine", "cosine table"])
def test_ddim_without_noise_is_euler_on_the_rescaled_image(path):
    # d(x / alpha) = eps d(sigma / alpha) (Song et al. 2021a, eq. 14), by hand.
    oracle = GaussianOracle.random(path, SHAPE)
    sampler = DDIM(8, 0.0, UniformGrid(), head="eps", clip=False)
    times = sampler.grid.times(path, 8, 2, end_times(path, "eps"))
    alpha, sigma = levels(path, np.append(times, 0.0))
    found = np.asarray(run(sampler, oracle, path, NOISE, KEY))
    scale = 1.0 if isinstance(path, CosineTable) else sigma[0]

    @jax.jit
    def eps(x, t):
        return jax.vmap(lambda x: ModelDenoiser(oracle, path, head="eps")(x, t).eps)(x)

    rescaled = np.asarray(NOISE, np.float64) * scale / alpha[0]
    for k, t in enumerate(times):
        noise = np.asarray(eps(jnp.asarray(rescaled * alpha[k], jnp.float32), jnp.asarray(t, jnp.float32)))
        rescaled = rescaled + noise * (sigma[k + 1] / alpha[k + 1] - sigma[k] / alpha[k])
    # From a thousandth of signal on (a table's last steps), float32 keeps three digits of x0.
    np.testing.assert_allclose(found, rescaled, atol=5e-3 if isinstance(path, CosineTable) else 2e-4)
