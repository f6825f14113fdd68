import numpy as np
import pytest

from umd_eqx.core.tables import cosine_betas, diffusion_tables, linear_betas

T = 1000
BETAS = {"cosine": cosine_betas(T), "linear": linear_betas(T)}


@pytest.fixture(params=BETAS)
def betas(request):
    return BETAS[request.param]


def test_cosine_betas_have_their_known_values():
    betas = cosine_betas(T)
    # By hand: f(u) = cos((u + 0.008) / 1.008 * pi / 2)^2.
    angle = np.pi / 2 / 1.008
    assert betas[0] == pytest.approx(1 - (np.cos(0.009 * angle) / np.cos(0.008 * angle)) ** 2, rel=1e-12)
    assert betas[0] == pytest.approx(4.12842e-5, rel=1e-5)
    assert betas[-1] == 0.999  # clipped
    assert np.all(np.diff(betas) >= 0)
    assert np.sum(betas == 0.999) == 1
    # Where nothing is clipped the products telescope to the curve itself.
    curve = np.cos((np.arange(1, T) / T + 0.008) * angle) ** 2 / np.cos(0.008 * angle) ** 2
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], curve, rtol=1e-9)


def test_linear_betas_have_their_known_values():
    betas = linear_betas(T)
    assert (betas[0], betas[-1]) == (1e-4, 0.02)
    assert betas[500] == pytest.approx(1e-4 + 500 * (0.02 - 1e-4) / 999, rel=1e-12)
    assert np.cumprod(1 - betas)[-1] == pytest.approx(4.0358e-5, rel=1e-4)  # as published for DDPM


@pytest.mark.parametrize("steps", [50, 100, 250, 4000])
def test_linear_betas_of_another_number_of_steps_are_scaled(steps):
    # As the reference: both ends times 1000 / steps. Half of the way down, the curve of abar is that of 1000 steps.
    betas = linear_betas(steps)
    assert (betas[0], betas[-1]) == pytest.approx((0.1 / steps, 20 / steps), rel=1e-12)
    np.testing.assert_allclose(np.diff(betas), (20 - 0.1) / steps / (steps - 1), rtol=1e-9)
    middle, published = np.cumprod(1 - betas)[steps // 2 - 1], np.cumprod(1 - linear_betas(T))[T // 2 - 1]
    assert middle == pytest.approx(published, rel=2.5 / steps**0.5)


def test_linear_betas_are_at_most_that_of_the_published_cap():
    assert linear_betas(10)[-1] == 0.999
    np.testing.assert_array_equal(linear_betas(10)[:4], np.linspace(0.01, 2.0, 10)[:4])


def test_neighbouring_tables_are_shifted(betas):
    tables = diffusion_tables(betas)
    abar = tables["alphas_cumprod"]
    np.testing.assert_array_equal(tables["alphas_cumprod_prev"], [1.0, *abar[:-1]])
    np.testing.assert_array_equal(tables["alphas_cumprod_next"], [*abar[1:], 0.0])
    assert abar[9] == pytest.approx(np.prod(1 - betas[:10]), rel=1e-12)


def test_roots_are_roots(betas):
    tables = diffusion_tables(betas)
    abar = tables["alphas_cumprod"]
    np.testing.assert_allclose(tables["sqrt_alphas_cumprod"] ** 2, abar)
    np.testing.assert_allclose(tables["sqrt_one_minus_alphas_cumprod"] ** 2, 1 - abar)
    # x0 = sqrt_recip x_t - sqrt_recipm1 eps, for any x0 and eps.
    x0, eps = 0.7, -1.3
    x_t = tables["sqrt_alphas_cumprod"] * x0 + tables["sqrt_one_minus_alphas_cumprod"] * eps
    recovered = tables["sqrt_recip_alphas_cumprod"] * x_t - tables["sqrt_recipm1_alphas_cumprod"] * eps
    np.testing.assert_allclose(recovered, x0, rtol=1e-9)


def test_the_posterior_is_that_of_gaussian_conditioning(betas):
    # One pixel: x_{t-1} ~ N(sqrt(abar') x0, 1 - abar'), and x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) noise.
    tables = diffusion_tables(betas)
    for i in (1, 2, 100, 500, 998, 999):
        prior = 1 - tables["alphas_cumprod"][i - 1]
        transfer, noise = np.sqrt(1 - betas[i]), betas[i]
        gain = prior * transfer / (transfer**2 * prior + noise)
        x0, x_t = 0.4, -1.1
        prior_mean = np.sqrt(tables["alphas_cumprod"][i - 1]) * x0
        mean = prior_mean + gain * (x_t - transfer * prior_mean)
        variance = (1 - gain * transfer) * prior
        computed = tables["posterior_mean_coef1"][i] * x0 + tables["posterior_mean_coef2"][i] * x_t
        assert computed == pytest.approx(mean, rel=1e-9)
        assert tables["posterior_variance"][i] == pytest.approx(variance, rel=1e-9)


def test_the_first_posterior_is_the_clean_image_itself(betas):
    tables = diffusion_tables(betas)
    assert tables["posterior_variance"][0] == 0
    assert tables["posterior_mean_coef1"][0] == pytest.approx(1)
    assert tables["posterior_mean_coef2"][0] == 0
    # Its logarithm would be -inf: the second stands in for it.
    log_variance = np.log(tables["posterior_variance"][1:])
    np.testing.assert_array_equal(tables["posterior_log_variance_clipped"], [log_variance[0], *log_variance])
