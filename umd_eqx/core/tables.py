"""The tables of a discrete diffusion, in float64 (Ho et al. 2020; Nichol and Dhariwal 2021)."""

import numpy as np
from jaxtyping import Float64

Table = Float64[np.ndarray, "steps"]


def cosine_betas(steps: int) -> Table:
    """Returns beta_i = min(1 - f((i+1)/T) / f(i/T), 0.999), f(u) = cos((u + 0.008)/1.008 pi/2)^2 (Nichol, eq. 17)."""
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - f[1:] / f[:-1], 0.999)


def linear_betas(steps: int) -> Table:
    """Returns evenly spaced betas from 0.1 / steps to 20 / steps, at most 0.999, as the reference does for any `steps`.

    These are 1e-4 to 0.02 for 1000 steps (Ho et al., section 4). The factor 1000 / steps keeps abar(t) nearly the same
    curve for other numbers of steps (Nichol and Dhariwal's code, `get_named_beta_schedule`).
    """
    scale = 1000 / steps
    return np.minimum(np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64), 0.999)


def diffusion_tables(betas: Table) -> dict[str, Table]:
    """Returns the tables derived from the betas, under the names used in published code.

    `posterior_*` describe q(x_{t-1} | x_t, x_0) (Ho et al., eq. 6 and 7). The reference has an error in
    `posterior_variance`; this is the formula of the paper. Its first entry is 0, which is why the logarithm is clipped.
    """
    abar = np.cumprod(1.0 - betas)
    previous = np.append(1.0, abar[:-1])
    variance = betas * (1.0 - previous) / (1.0 - abar)
    return {
        "betas": betas,
        "alphas": 1.0 - betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": previous,
        "alphas_cumprod_next": np.append(abar[1:], 0.0),
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / abar - 1.0),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.append(variance[1], variance[1:])),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - abar),
        "posterior_mean_coef2": (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - abar),
    }
