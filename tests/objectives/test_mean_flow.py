"""MeanFlow where the average velocity is known: Gaussian data along the rectified flow."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from umd_eqx.commands.sampling import SamplingFlags
from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import NETWORK_STEPS, CosinePath, RectifiedFlow
from umd_eqx.core.predictions import PredictionType, VPrediction
from umd_eqx.core.types import NO_CLASS, AbstractCond, Batch, Image, IntervalCond, Label
from umd_eqx.eval import Generation
from umd_eqx.models import AbstractModel
from umd_eqx.objectives import MeanFlow, denoising
from umd_eqx.objectives.mean_flow import MeanFlowDraw
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.sampling import MeanFlowSampler, guide, sample

SHAPE = (2, 2, 1)
PATH = RectifiedFlow()
MEAN, STD = 0.4, 0.5
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def with_a_network():
    """A network adds biases (d) to tokens (n, d)."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Exact(AbstractModel):
    """The average velocity for pixels that are independently N(MEAN, std^2); without `interval`, that at t alone."""

    std: float = STD
    interval: bool = eqx.field(static=True, default=True)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)
    num_classes: int | None = eqx.field(static=True, default=None)
    prediction: PredictionType = eqx.field(static=True, default="u")

    def cond(self, y: Label = NO_CLASS) -> IntervalCond:
        return IntervalCond(jnp.zeros(()), jnp.asarray(y), jnp.zeros(()))

    def flow(self, z: Image, t: Array, r: Array) -> Image:
        """Where the probability-flow ODE brings z from t to r."""
        spread = [jnp.sqrt((1 - s) ** 2 * self.std**2 + s**2) for s in (t, r)]
        return (1 - r) * MEAN + spread[1] / spread[0] * (z - (1 - t) * MEAN)

    def velocity(self, z: Image, t: Array) -> Image:
        return -jax.jvp(lambda r: self.flow(z, t, r), (t,), (-jnp.ones_like(t),))[1]

    def __call__(self, x: Image, cond: AbstractCond, view=None, *, key=None) -> VPrediction:
        assert isinstance(cond, IntervalCond)
        t, r = cond.t / NETWORK_STEPS, cond.r / NETWORK_STEPS
        length = t - r
        if not self.interval:
            return VPrediction(self.velocity(x, t))
        average = (x - self.flow(x, t, r)) / jnp.where(length > 1e-4, length, 1.0)
        return VPrediction(jnp.where(length > 1e-4, average, self.velocity(x, t)))


class Line(AbstractModel):
    """u = slope z + drift t."""

    slope: Float[Array, ""]
    drift: Float[Array, ""]
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)
    num_classes: int | None = eqx.field(static=True, default=None)
    prediction: PredictionType = eqx.field(static=True, default="u")

    def cond(self, y: Label = NO_CLASS) -> IntervalCond:
        return IntervalCond(jnp.zeros(()), jnp.asarray(y), jnp.zeros(()))

    def __call__(self, x: Image, cond: AbstractCond, view=None, *, key=None) -> VPrediction:
        return VPrediction(self.slope * x + self.drift * cond.t / NETWORK_STEPS)


def batch_of(images: Float[Array, "b h w c"]) -> Batch:
    return Batch(images, jnp.zeros(len(images), jnp.int32), jnp.ones(len(images), bool))


def test_the_gradient_of_a_line_is_that_by_hand_with_the_target_held_constant():
    keys = jax.random.split(KEY, 2)
    x0, eps = (jax.random.normal(key, (3, *SHAPE)) for key in keys)
    t, r = jnp.asarray([0.9, 0.5, 0.7]), jnp.asarray([0.2, 0.5, 0.1])
    draw = MeanFlowDraw(t, r, eps, jnp.zeros(3, bool))
    slope, drift = 0.7, -0.3

    def loss(slope, drift):
        return MeanFlow(adaptive_power=0.0).loss(Line(slope, drift), PATH, batch_of(x0), draw)[0]

    found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(jnp.asarray(slope), jnp.asarray(drift))
    times, earlier = (np.asarray(s)[:, None, None, None] for s in (t, r))
    x0, eps = np.asarray(x0, np.float64), np.asarray(eps, np.float64)
    z, v = (1 - times) * x0 + times * eps, eps - x0
    target = v - (times - earlier) * (slope * v + drift)
    difference = slope * z + drift * times - target
    expected = [np.mean(np.sum(d, axis=(1, 2, 3))) for d in (difference**2, 2 * difference * z, 2 * difference * times)]
    np.testing.assert_allclose([found[0], *found[1]], expected, rtol=2e-5)


@pytest.mark.parametrize(("interval", "solved"), [(True, True), (False, False)])
def test_the_exact_average_velocity_solves_the_regression_and_the_instantaneous_one_does_not(interval, solved):
    """The conditional mean of the residual is 0: it is correlated with no function of z."""
    count = 20_000
    keys = jax.random.split(KEY, 2)
    x0 = MEAN + STD * jax.random.normal(keys[0], (count, *SHAPE))
    eps = jax.random.normal(keys[1], (count, *SHAPE))
    t, r = jnp.full(count, 0.9), jnp.full(count, 0.1)
    draw = MeanFlowDraw(t, r, eps, jnp.zeros(count, bool))
    model = Exact(interval=interval)
    objective = MeanFlow(adaptive_power=0.0)
    z = np.asarray(0.1 * x0 + 0.9 * eps)

    @jax.jit
    def slopes(shift):
        """Half the gradient of the loss to a number that is added to u, alone and times z: the mean residual."""

        class Shifted(Exact):
            def __call__(self, x, cond, view=None, *, key=None):
                held = jax.lax.stop_gradient(x)
                return VPrediction(model(x, cond).v + shift[0] + shift[1] * held)

        # A constant shift has no derivative in z, r or t; one that goes with z is held.
        return objective.loss(Shifted(), PATH, batch_of(x0), draw)[0]

    residuals = np.asarray(jax.grad(slopes)(jnp.zeros(2))) / (2 * np.prod(SHAPE))
    noise = 4 * np.array([1.0, np.std(z)]) * np.std(np.asarray(eps - x0)) / np.sqrt(count * np.prod(SHAPE))
    assert bool(np.all(np.abs(residuals) < noise)) == solved


def test_one_call_is_the_flow_and_more_steps_change_nothing():
    noise = jax.random.normal(KEY, SHAPE)
    model = Exact()
    images = []
    for steps in (1, 2, 5):
        sampler = MeanFlowSampler(steps, clip=False)
        denoiser = sampler.denoiser(model, PATH)
        images.append(np.asarray(eqx.filter_jit(sampler)(denoiser, noise, KEY)))
        times, states = sampler.states(denoiser, noise, KEY)
        assert (len(times), states.shape, sampler.evaluations(denoiser)) == (steps, (steps, *SHAPE), steps)
    np.testing.assert_allclose(images[0], MEAN + STD * np.asarray(noise), atol=1e-5)
    np.testing.assert_allclose(images[1:], [images[0]] * 2, atol=1e-5)
    # In the notation of the paper, x0 = eps - u(eps, 0, 1).
    u = model(noise, model.cond().at(jnp.asarray(1000.0), jnp.asarray(0.0))).v
    np.testing.assert_allclose(images[0], np.asarray(noise - u), atol=1e-6)
    clipped = MeanFlowSampler(1)(MeanFlowSampler(1).denoiser(model, PATH), 10 * noise, KEY)
    assert np.abs(np.asarray(clipped)).max() == 1


def test_times_are_ordered_and_a_quarter_of_the_intervals_has_a_length():
    draw = MeanFlow().draw(KEY, Exact(), PATH, (20_000, *SHAPE))
    t, r = np.asarray(draw.t), np.asarray(draw.r)
    assert (r <= t).all()
    assert (t < 1).all()
    assert (r > 0).all()
    assert np.mean(r < t) == pytest.approx(0.25, abs=0.015)
    both = np.concatenate([t[r < t], r[r < t]])
    assert np.mean(np.log(both / (1 - both))) == pytest.approx(-0.4, abs=0.04)


def test_a_real_network_learns_in_a_few_steps(random_model):
    model = random_model(8, channels=1, labels=True, prediction="u")
    batch = Batch(0.1 * jax.random.normal(KEY, (8, 8, 8, 1)) + 0.5, jnp.arange(8) % 5, jnp.ones(8, bool))
    objective = MeanFlow(adaptive_power=0.0)
    value_and_grad = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: objective(m, PATH, batch, KEY)[0]))
    losses = []
    for _ in range(4):
        loss, gradient = value_and_grad(model)
        losses.append(float(loss))
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -1e-4 * g, gradient))
    assert np.isfinite(losses).all()
    assert losses[3] < losses[2] < losses[1] < losses[0]


def test_samples_of_a_batch_are_those_of_each(random_model):
    model = random_model(8, channels=1, labels=True, prediction="u")
    sampler = MeanFlowSampler(2)
    labels = np.arange(5)
    whole = sample(sampler.denoiser(model, PATH), sampler, labels, KEY, batch_size=8)
    one = sample(sampler.denoiser(model, PATH), sampler, labels[:1], KEY, batch_size=8)
    np.testing.assert_allclose(whole[:1], one, atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_what_cannot_work_is_refused(random_model):
    batch = batch_of(jnp.zeros((2, *SHAPE)))
    with pytest.raises(BadInput, match=r"path: CosinePath is not the rectified flow"):
        MeanFlow()(Exact(), CosinePath(), batch, KEY)
    plain = random_model(8, channels=1)
    with pytest.raises(BadInput, match=r"model.prediction: the network predicts x0_eps"):
        MeanFlow()(plain, PATH, batch, KEY)
    sampler = MeanFlowSampler()
    with pytest.raises(BadInput, match=r"sampler: the network predicts x0_eps"):
        sampler(sampler.denoiser(plain, PATH), jnp.zeros((8, 8, 1)), KEY)
    labelled = random_model(8, channels=1, labels=True, prediction="u")
    with pytest.raises(BadInput, match=r"sampler: ClassifierFree has no average velocities"):
        sampler(guide(sampler.denoiser(labelled, PATH), 2.0), jnp.zeros((8, 8, 1)), KEY)
    for change in ({"interval_prob": 1.5}, {"label_dropout": -0.1}, {"time_std": -1.0}, {"adaptive_power": -1.0}):
        with pytest.raises(BadInput, match=next(iter(change))):
            dataclasses.replace(MeanFlow(), **change).validate(4, 8)
    MeanFlow().validate(1, 8)
    assert denoising().denoises
    assert MeanFlow().denoises
    assert not MeanFlow().hides


def test_guidance_is_refused_where_there_are_no_average_velocities():
    flags = SamplingFlags(sampler=MeanFlowSampler())
    labelled = from_pretrained()
    flags.validate()
    assert flags.scale(labelled) == 1.0
    assert SamplingFlags().scale(labelled) == 2.0
    for change in ({"cfg_scale": 2.0}, {"weak": "run"}):
        with pytest.raises(BadInput, match=r"^sampler: MeanFlowSampler does not support guidance"):
            dataclasses.replace(flags, **change).validate()
    Generation(sampler=MeanFlowSampler(), cfg_scales=(1.0,)).validate()
    with pytest.raises(BadInput, match=r"^eval\.generation\.cfg_scales: .* MeanFlowSampler requires the scale 1"):
        Generation(sampler=MeanFlowSampler()).validate()
