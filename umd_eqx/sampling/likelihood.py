"""The likelihood of an image under a network, by integrating the probability-flow ODE from the image to noise.

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
from umd_eqx.core.types import Image, Scalar
from umd_eqx.sampling.denoisers import AbstractDenoiser
from umd_eqx.sampling.ode import flow

Trace = Literal["hutchinson", "exact"]
Solver = Literal["tsit5", "dopri5", "heun"]

_SOLVERS = {"tsit5": diffrax.Tsit5, "dopri5": diffrax.Dopri5, "heun": diffrax.Heun}

_JACOBIAN_CHUNK = 64
"""Number of Jacobian columns computed at once; memory use is that of as many forward passes."""

State = tuple[Image, Scalar]
"""The current image, and the accumulated change of its log-density per dimension."""


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
    """Returns -log2 p(x) / dimensions of one image, p being the density of the model. Use `jax.vmap` for many images.

    Let t0 and t1 be the end times of the denoiser (`AbstractDenoiser.ends`: `t_min` and `t_max` of its path, but at
    least 1e-3 away from a division by zero). The image is taken to be x(t0), and

        dx/dt = f(x, t) = alpha'(t) x0_hat + sigma'(t) eps_hat,    x(t1) ~ N(0, sigma(t1)^2 I),
        log p(x) = log N(x(t1); 0, sigma(t1)^2 I) + integral of div f(x(t), t) from t0 to t1

    (eq. 39). The density p is thus that of images with the noise of t0, which tends to the density of the data as t0
    tends to 0. The prior is the initial distribution of the ODE samplers. It neglects the remaining share alpha(t1) of
    the image, which changes the result of a single image by as much, about 1e-3 on `CosinePath()`, and the mean over
    images by its square.

    **Arguments:**

    - `denoiser`: the denoiser, conditioned on the class of the image if its network has classes. `ModelDenoiser` with
      head "v" avoids any division; for the likelihood of the samples of a sampler, use its denoiser
      (`AbstractSampler.denoiser`).
    - `x`: the image in the units of the network, [-1, 1]. Discrete pixel values have no density: spread each over its
      bin first (uniform dequantisation), x + u / 127.5 with u uniform in [-1/2, 1/2). See also `bits_of_pixel_values`.
    - `key`: used only for the vectors of the "hutchinson" estimator.
    - `trace`: how to compute the trace of the Jacobian J of f. "exact" requires as many products with J as the image
      has values. "hutchinson" is the mean of <w, J w> over `probes` vectors w of random signs (Hutchinson 1989). The
      same vectors are used along the whole trajectory, which makes the result unbiased.
    - `steps`: the number of steps, even in t. None: adaptive steps that keep the error of each step below
      `atol` + `rtol` times the value, for every pixel and for the log-density per dimension; raises if more than 4,096
      are required. The rates of a smoothed table have a kink at each of its levels; the accuracy that a closed-form
      path reaches with tolerances of 1e-5 requires 1e-6 there.

    **Raises:** `BadInput` naming `path` for a tabulated path, which has no rates, and `probes` or `steps` for a
    value below 1.
    """
    path = denoiser.path
    if not isinstance(path, AbstractSmoothPath):
        hint = "Pass umd_eqx.core.paths.smooth(path), a smooth path through its levels"
        raise BadInput("path", "the likelihood requires the rates of the path, and a tabulated path has none", hint)
    for name, value in (("probes", probes), ("steps", steps)):
        if value is not None and value < 1:
            raise BadInput(name, f"{value} is too small", "Use 1 or more")
    vectors = jax.random.rademacher(key, (probes, *x.shape), x.dtype) if trace == "hutchinson" else None
    adaptive = diffrax.PIDController(rtol=rtol, atol=atol, norm=_largest)
    controller = adaptive if steps is None else diffrax.ConstantStepSize()
    noise, change = _integrate(denoiser, x, vectors, _SOLVERS[solver](), controller, steps)
    std = path.sigma(jnp.asarray(denoiser.ends[1], x.dtype)).astype(x.dtype)
    return -(_log_normal(noise, std) + change) / math.log(2)


def bits_of_pixel_values(bits: Scalar) -> Scalar:
    """Converts bits per dimension to pixel values 0-255: adds log2(127.5), as one unit of x is 127.5 pixel values.

    With uniform dequantisation, the mean over images is an upper bound on the bits per dimension of a lossless code
    (Theis et al. 2016, section 3.1). A uniform distribution gives 8.
    """
    return bits + math.log2(127.5)


def _integrate(
    denoiser: AbstractDenoiser,
    x: Image,
    vectors: Float[Array, "probes h w c"] | None,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController,
    steps: int | None,
) -> State:
    """Integrates the ODE from the image to noise. `vectors` are as for `_divergence`."""
    drift = flow(denoiser)

    def field(t: Any, state: State, args: None) -> State:
        velocity, jacobian = jax.linearize(lambda x: drift(t, x, args), state[0])
        return velocity, _divergence(jacobian, vectors, velocity) / x.size

    start, end = (jnp.asarray(t, x.dtype) for t in denoiser.ends)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0=start,
        t1=end,
        dt0=None if steps is None else (end - start) / steps,
        y0=(x, jnp.zeros((), x.dtype)),
        stepsize_controller=controller,
        max_steps=4096 if steps is None else steps + 1,  # one more, in case rounding leaves a remainder
    )
    assert solution.ys is not None
    return solution.ys[0][-1], solution.ys[1][-1]


def _log_normal(x: Image, std: Scalar) -> Scalar:
    """Returns log N(x; 0, std^2 I) per dimension."""
    return -0.5 * (jnp.mean(jnp.square(x / std)) + math.log(2 * math.pi)) - jnp.log(std)


def _divergence(jacobian: Any, vectors: Float[Array, "probes h w c"] | None, like: Image) -> Scalar:
    """Returns the trace of a linear map of images, or its estimate if random vectors are given."""
    if vectors is not None:
        return jnp.mean(jax.vmap(lambda w: jnp.vdot(w, jacobian(w)))(vectors))

    def diagonal(index: Array) -> Scalar:
        unit = jnp.zeros(like.size, like.dtype).at[index].set(1.0)
        return jacobian(unit.reshape(like.shape)).reshape(-1)[index]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(like.size), batch_size=min(_JACOBIAN_CHUNK, like.size)))


def _largest(error: State) -> Scalar:
    # Not the root mean square, in which the log-density would count as a single pixel.
    return jnp.maximum(jnp.max(jnp.abs(error[0])), jnp.abs(error[1]))
