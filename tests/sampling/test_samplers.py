"""What every sampler must do, whatever it is good for."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from sampling.known import Sure, run

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosinePath, CosineTable, LinearTable, RectifiedFlow, smooth
from umd_eqx.sampling import DDIM, GRIDS, SAMPLERS, Clipped, ModelDenoiser
from umd_eqx.sampling.denoisers import end_times

PATHS = {
    "cosine table": CosineTable(20),
    "linear table": LinearTable(),
    "cosine": CosinePath(),
    "whole cosine": CosinePath(0.0, 1.0),
    "rectified flow": RectifiedFlow(),
    "whole rectified flow": RectifiedFlow(0.0, 1.0),
    "smooth table": smooth(CosineTable(20)),
}
NAMES = ("ddim", "dpmpp", "euler", "heun", "sde", "tsit5", "dopri5")
HEADS = ("eps", "x0", "v")
MODEL = Sure()
NOISE = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
KEY = jax.random.key(1)


def sampler_of(name, grid=None, **changes):
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if name in ("tsit5", "dopri5") else {}
    grids = {} if grid is None else {"grid": GRIDS[grid]()}
    return SAMPLERS[name](**{"steps": 4, **tolerances, **grids, **changes})


def is_table(path) -> bool:
    return isinstance(path, CosineTable | LinearTable)


# (sampler, path) that go together.
TOGETHER = [
    (name, path) for name in NAMES for path in PATHS if not (sampler_of(name).needs_rates and is_table(PATHS[path]))
]


def check_ends(name, path, head, **changes):
    images = np.asarray(run(sampler_of(name, head=head, **changes), MODEL, PATHS[path], NOISE, KEY))
    assert np.all(np.isfinite(images))
    assert np.all(np.abs(images) <= 1.0)  # clipped
    assert images.std() > 0


@pytest.mark.parametrize(
    ("name", "path", "head"),
    [
        ("ddim", "cosine table", "eps"),
        ("dpmpp", "whole rectified flow", "x0"),
        ("dpmpp", "whole rectified flow", "v"),
        ("euler", "whole rectified flow", "eps"),
    ],
)
def test_finite_at_the_ends(name, path, head):
    check_ends(name, path, head)


def test_the_last_step_of_a_smoothed_table_ends_clean():
    # Its formula is not quite clean at t = 0; the sample is the prediction of the last time all the same.
    sampler, path = sampler_of("dpmpp", head="x0"), PATHS["smooth table"]
    of_image, of_x0, of_before = (weights[-1] for weights in sampler.weights(path, 2, end_times(path, "x0")))
    assert (of_image, of_x0, abs(of_before)) == (0, 1, 0)


def test_the_reverse_sde_is_finite_on_even_steps_from_pure_noise():
    check_ends("sde", "whole rectified flow", "x0", grid="uniform")


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("name", "path"), TOGETHER)
def test_finite_at_the_ends_of_every_path(name, path, head):
    check_ends(name, path, head)


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["reference", "uniform", "edm", "logsnr", "shifted"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp", "euler", "heun", "sde"])
def test_finite_at_the_ends_on_every_grid(name, grid):
    check_ends(name, "whole rectified flow", "x0", grid=grid)


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_one_step_is_the_prediction_at_the_first_time(name):
    sampler, path = sampler_of(name, steps=1, grid="uniform", clip=False, head="x0"), CosinePath()
    t = jnp.asarray(path.t_max)
    first = MODEL(path.sigma(t) * NOISE[0], MODEL.cond(0).at(path.network_time(t))).x0
    np.testing.assert_allclose(run(sampler, MODEL, path, NOISE[:1], KEY)[0], first, atol=1e-6)


@pytest.mark.parametrize("name", ["euler", "heun", "tsit5", "dopri5", "sde"])
def test_a_table_has_no_rates(name):
    assert sampler_of(name).needs_rates
    with pytest.raises(BadInput, match=r"sampler: .*smooth\(path\)"):
        sampler_of(name)(ModelDenoiser(MODEL, CosineTable()), NOISE[0], KEY)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["ddim", *(pytest.param(name, marks=SLOW) for name in ("dpmpp", "heun", "sde", "tsit5"))]
)
def test_a_trajectory_ends_in_the_image(name):
    sampler = sampler_of(name, head="v")
    denoiser = sampler.denoiser(MODEL, CosinePath(), MODEL.cond(1))
    trajectory = jax.jit(lambda noise: (*sampler.trajectory(denoiser, noise, KEY),))
    times, frames = trajectory(NOISE[0])
    image = jax.jit(lambda noise: sampler(denoiser, noise, KEY))(NOISE[0])
    assert times.shape[0] == frames.shape[0] == len(sampler.states(denoiser, NOISE[0], KEY)[0])
    assert np.all(np.diff(times) < 0)
    np.testing.assert_allclose(frames[-1], image, atol=2e-2 if name == "tsit5" else 1e-5)


def test_noise_that_is_handed_in_stands_for_the_key():
    sampler, path = DDIM(4, 1.0), CosineTable(20)
    go = functools.partial(run, sampler, MODEL, path, NOISE)
    steps = sampler.evaluations(sampler.denoiser(MODEL, path))
    given = jax.random.normal(jax.random.key(5), (3, steps, 2, 2, 1))
    np.testing.assert_array_equal(go(KEY, given), go(jax.random.key(9), given))
    assert np.abs(np.asarray(go(KEY)) - np.asarray(go(jax.random.key(9)))).max() > 1e-2
    # What is drawn for the last step has no weight.
    np.testing.assert_array_equal(go(KEY, given), go(KEY, given.at[:, -1].set(1e3)))


def test_without_eta_nothing_is_drawn():
    go = functools.partial(run, DDIM(4, 0.0), MODEL, CosineTable(20), NOISE)
    np.testing.assert_array_equal(go(KEY), go(jax.random.key(9)))


@pytest.mark.parametrize("path", [CosineTable(), RectifiedFlow()], ids=["table", "rectified flow"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("clip", [False, True])
def test_both_outputs_agree_with_what_is_seen(path, head, clip):
    t, x = jnp.asarray(0.6), NOISE[0] * 2
    denoiser = ModelDenoiser(MODEL, path, MODEL.cond(0), head=head)
    said = jax.jit(lambda x: (Clipped(denoiser) if clip else denoiser)(x, t))(x)
    np.testing.assert_allclose(path.interpolate(said.x0, said.eps, t), x, atol=1e-5)
    if clip:
        assert np.abs(said.x0).max() <= 1.0
    else:
        raw = MODEL(x, MODEL.cond(0).at(path.network_time(t)))
        believed = {"x0": (said.x0, raw.x0), "eps": (said.eps, raw.eps)}
        believed["v"] = tuple(path.v_from_x0_eps(p.x0, p.eps, t) for p in (said, raw))
        np.testing.assert_allclose(*believed[head], atol=1e-5)


@pytest.mark.parametrize("name", ["dpmpp", "heun"])
def test_images_go_through_the_loop_together(name):
    # One loop over the steps, whose end hangs on no image: the network is called once for the batch.
    sampler = sampler_of(name)
    denoiser = sampler.denoiser(MODEL, CosinePath(), MODEL.cond(0))
    program = jax.make_jaxpr(jax.vmap(lambda noise: sampler(denoiser, noise, KEY)))(NOISE)
    loops = [eqn for eqn in _equations(program.jaxpr) if eqn.primitive.name == "while"]
    assert loops
    for loop in loops:
        (stays_in,) = loop.params["cond_jaxpr"].out_avals
        assert stays_in.shape == ()
        assert not [eqn for eqn in _equations(loop.params["cond_jaxpr"].jaxpr) if "reduce" in eqn.primitive.name]


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)
