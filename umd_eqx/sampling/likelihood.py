"""How likely an image is under a network: the probability-flow ODE followed from the image to noise.

Song et al. 2021, "Score-based generative modeling through stochastic differential equations", section 4.3 and appendix
D.2; the trace is estimated as in FFJORD (Grathwohl et al. 2019).
"""

import math
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractSmoothPath
from umd_eqx.core.types import Image, Scalar, Time
from umd_eqx.sampling.denoisers import AbstractDenoiser

Trace = Literal["hutchinson", "exact"]
Solver = Literal["tsit5", "dopri5", "heun"]

_SOLVERS = {"tsit5": diffrax.Tsit5, "dopri5": diffrax.Dopri5, "heun": diffrax.Heun}

_ROWS = 64
"""Columns of a Jacobian computed at once: its memory is that of so many forward passes."""

State = tuple[Image, Scalar]
"""An image on its way, and the change of its log-density so far, a dimension."""


def bits_per_dim(
    denoiser: AbstractDenoiser,
    x: Image,
    key: PRNGKeyArray,
    *,
    trace: Trace = "hutchinson",
    probes: int = 1,
    solver: Solver = "tsit5",
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Scalar:
    """-log2 p(x) / dimensions of one image, p being what the denoiser makes of noise. Use `jax.vmap` for many.

    Let t0 and t1 be the ends of the denoiser (`AbstractDenoiser.ends`: `t_min` and `t_max` of its path, but not nearer
    than 1e-3 to where a division by zero waits). The image is taken for x(t0), and

        dx/dt = f(x, t) = alpha'(t) x0_hat + sigma'(t) eps_hat,    x(t1) ~ N(0, sigma(t1)^2 I),
        log p(x) = log N(x(t1); 0, sigma(t1)^2 I) + integral of div f(x(t), t) from t0 to t1

    (eq. 39). So p is the density of images with the noise of t0 in them, which is that of the data as t0 goes to 0. The
    prior is where the ODE samplers begin. It leaves out the share alpha(t1) of the image that is still there, which
    moves a single image's result by as much, about 1e-3 on `CosinePath()`, and the mean over images by its square.

    **Arguments:**

    - `denoiser`: told the class of the image, if its network knows classes. `ModelDenoiser` with head "v" divides by
      nothing; for the likelihood of what a sampler makes, give the sampler's (`AbstractSampler.denoiser`).
    - `x`: in the units of the network, [-1, 1]. Grey levels have no density: spread each over its bin first (uniform
      dequantisation), x + u / 127.5 with u uniform in [-1/2, 1/2); and see `bits_of_levels`.
    - `trace`: of the Jacobian J of f. "exact" takes as many products with it as the image has values. "hutchinson" is
      the mean of <w, J w> over `probes` vectors w of random signs (Hutchinson 1989), the same ones all the way, so that
      the result has no bias. `key` is for these alone.
    - `steps`: so many steps, evenly in t. None: as many as keep the error of each step below `atol` + `rtol` times the
      value, for every pixel and for the log-density a dimension; more than 4,096 raise. The rates of a smoothed table
      have a corner at each of its levels: 1e-6 is for it what 1e-5 is for a formula.

    **Raises:** `BadInput` naming `--path` for a table, which has no rates, and `--probes` or `--steps` for one below 1.
    """
    path = denoiser.path
    if not isinstance(path, AbstractSmoothPath):
        hint = "Pass umd_eqx.core.paths.smooth(path), the curve through its levels"
        raise BadInput("--path", "the likelihood follows the rates of the path, and a table has none", hint)
    for flag, value in (("--probes", probes), ("--steps", steps)):
        if value is not None and value < 1:
            raise BadInput(flag, f"{value} is too small", "Use 1 or more")
    start, end = (jnp.asarray(t, x.dtype) for t in denoiser.ends)
    vectors = jax.random.rademacher(key, (probes, *x.shape), x.dtype) if trace == "hutchinson" else None

    def drift(x: Image, t: Time) -> Image:
        ends = denoiser(x, t)
        alpha_rate, sigma_rate = (rate.astype(x.dtype) for rate in path.rates(t))
        return alpha_rate * ends.x0 + sigma_rate * ends.eps

    def field(t: Any, state: State, args: None) -> State:
        velocity, jacobian = jax.linearize(lambda x: drift(x, t), state[0])
        return velocity, _divergence(jacobian, vectors, velocity) / x.size

    adaptive = diffrax.PIDController(rtol=rtol, atol=atol, norm=_largest)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        _SOLVERS[solver](),
        t0=start,
        t1=end,
        dt0=None if steps is None else (end - start) / steps,
        y0=(x, jnp.zeros((), x.dtype)),
        stepsize_controller=adaptive if steps is None else diffrax.ConstantStepSize(),
        max_steps=4096 if steps is None else steps + 1,  # one more, where rounding leaves a rest
    )
    assert solution.ys is not None
    noise, change = solution.ys[0][-1], solution.ys[1][-1]
    return -(_log_normal(noise, path.sigma(end).astype(x.dtype)) + change) / math.log(2)


def bits_of_levels(bits: Scalar) -> Scalar:
    """Bits a dimension of an image in grey levels 0 .. 255: log2(127.5) more, because one unit of x is 127.5 levels.

    With uniform dequantisation the mean over images is an upper bound of the bits that a code for grey levels takes
    (Theis et al. 2016, section 3.1). Knowing nothing costs 8.
    """
    return bits + math.log2(127.5)


def _log_normal(x: Image, std: Scalar) -> Scalar:
    """log N(x; 0, std^2 I), a dimension."""
    return -0.5 * (jnp.mean(jnp.square(x / std)) + math.log(2 * math.pi)) - jnp.log(std)


def _divergence(jacobian: Any, vectors: Float[Array, "probes h w c"] | None, like: Image) -> Scalar:
    """The trace of a linear map of images, or its estimate by probes."""
    if vectors is not None:
        return jnp.mean(jax.vmap(lambda w: jnp.vdot(w, jacobian(w)))(vectors))

    def diagonal(index: Array) -> Scalar:
        unit = jnp.zeros(like.size, like.dtype).at[index].set(1.0)
        return jacobian(unit.reshape(like.shape)).reshape(-1)[index]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(like.size), batch_size=min(_ROWS, like.size)))


def _largest(error: State) -> Scalar:
    # Not the root of the mean square, in which the log-density would be one value among all the pixels.
    return jnp.maximum(jnp.max(jnp.abs(error[0])), jnp.abs(error[1]))
