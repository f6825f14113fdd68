"""What a sampler says of its calls of the network is how often it calls it."""

import dataclasses
from collections.abc import Callable
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from umd_eqx.core.paths import CosineTable, RectifiedFlow, smooth
from umd_eqx.core.predictions import (
    AbstractPrediction,
    Head,
    PredictionType,
    VPrediction,
    X0EpsPrediction,
    X0Prediction,
)
from umd_eqx.core.types import NO_CLASS, AbstractCond, Cond, IntervalCond
from umd_eqx.models import AbstractModel
from umd_eqx.sampling import DDIM, SAMPLERS, Adaptive, Autoguidance, Euler, ReverseSDE, UniformGrid

SHAPE = (2, 2, 1)
NOISE, KEY = jax.random.normal(jax.random.key(0), SHAPE), jax.random.key(1)
PREDICTIONS = {
    "x0_eps": lambda x: X0EpsPrediction(0.5 * x, 0.8 * x),
    "x0": lambda x: X0Prediction(0.5 * x),
    "v": lambda x: VPrediction(0.3 * x),
    "u": lambda x: VPrediction(0.3 * x),
}
# With these numbers of steps, whether the first time is 1 or just before it decides how many times there are.
SENSITIVE = {"ddim, 1000 steps": DDIM(1000), "sde, 86 even steps": ReverseSDE(86, UniformGrid())}


class Counted(AbstractModel):
    """A network of any prediction type that reports each of its calls."""

    called: Callable[[], None] = eqx.field(static=True)
    prediction: PredictionType = eqx.field(static=True)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)
    num_classes: int | None = eqx.field(static=True, default=10)

    def cond(self, y=NO_CLASS) -> AbstractCond:
        t, y = jnp.zeros(()), jnp.asarray(y)
        return IntervalCond(t, y, t) if self.prediction == "u" else Cond(t, y)

    def __call__(self, x, cond, view=None, *, key=None) -> AbstractPrediction:
        jax.debug.callback(self.called)
        return PREDICTIONS[self.prediction](x)


def counted(sampler, denoiser_of, prediction) -> tuple[int, int]:
    """How often a sampler calls the network for an image, and how often it says that it does."""
    calls = []
    denoiser = denoiser_of(sampler, Counted(lambda: calls.append(1), prediction))
    image = eqx.filter_jit(sampler)(denoiser, NOISE, KEY)
    assert bool(jnp.isfinite(image).all())
    jax.effects_barrier()
    made = len(calls)
    said = sampler.count(denoiser, NOISE) if isinstance(sampler, Adaptive) else sampler.evaluations(denoiser)
    return made, int(said)


def along(path):
    return lambda sampler, model: sampler.denoiser(model, path)


def small(name: str):
    return dataclasses.replace(SAMPLERS[name](), steps=4)


@pytest.mark.parametrize("head", get_args(Head))
@pytest.mark.parametrize("prediction", ["x0_eps", "x0", "v"])
@pytest.mark.parametrize("name", SENSITIVE)
def test_the_count_follows_the_times_at_which_this_network_can_be_called(name, prediction, head):
    made, said = counted(dataclasses.replace(SENSITIVE[name], head=head), along(RectifiedFlow()), prediction)
    assert made == said


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ddim", CosineTable(20)),
        ("euler", RectifiedFlow()),
        ("heun", RectifiedFlow()),
        ("dpmpp", RectifiedFlow()),
        ("tsit5", smooth(CosineTable(20))),
        ("sde", RectifiedFlow()),
        ("meanflow", RectifiedFlow()),
    ],
)
def test_every_sampler_counts_its_calls(name, path):
    made, said = counted(small(name), along(path), "u" if name == "meanflow" else "x0_eps")
    assert made == said


@pytest.mark.slow
@pytest.mark.parametrize("head", get_args(Head))
@pytest.mark.parametrize("prediction", get_args(PredictionType))
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_counts_its_calls_of_every_network(name, prediction, head):
    if name == "meanflow" and prediction != "u":
        pytest.skip("it needs average velocities")
    made, said = counted(dataclasses.replace(small(name), head=head), along(RectifiedFlow()), prediction)
    assert made == said


def test_under_guidance_the_count_follows_both_networks():
    def guided(sampler, model):
        # The weak network has a head eps, and cannot be called at t = 1, where the other one can.
        weak = Counted(lambda: None, "x0_eps")
        return Autoguidance(*(sampler.denoiser(network, RectifiedFlow()) for network in (model, weak)), 2.0)

    alone, _ = counted(DDIM(1000), along(RectifiedFlow()), "v")
    made, said = counted(DDIM(1000), guided, "v")
    assert made == said == alone - 1


def test_a_grid_that_depends_on_the_side_is_asked_for_that_of_the_image():
    class Sided(UniformGrid):
        def times(self, path, steps, side, ends):
            return super().times(path, steps + side, side, ends)

    assert counted(Euler(3, Sided()), along(RectifiedFlow()), "v") == (5, 5)
