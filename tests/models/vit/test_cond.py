"""What a network is told: a time for each patch, and an interval of time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases.network import with_tokens

from umd_eqx.core.masking import View
from umd_eqx.core.types import Cond

MODULATIONS = ("adaln", "shared-adaln")
RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.normal(size=(16, 16, 3)), jnp.float32)
TIME, LABEL = jnp.asarray(137.0), jnp.asarray(3)
TIMES = jnp.asarray(RNG.integers(0, 1001, 16), jnp.float32)
ORDER = jnp.asarray(RNG.permutation(16))
HIDDEN = View(ORDER, kept=6)

predict = eqx.filter_jit(lambda model, t, view=None: model(IMAGE, model.cond(LABEL).at(t), view))


def difference(a, b) -> float:
    # In numpy: JAX would compile every operation for every shape.
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(max(np.max(np.abs(np.asarray(x) - np.asarray(y))) for x, y in pairs))


@pytest.mark.parametrize("conditioning", MODULATIONS)
def test_equal_times_of_all_patches_are_one_time_of_the_image(random_model, conditioning):
    # Decoder and encoder of different widths; class tokens and registers, which stand for the whole image.
    model = random_model(16, conditioning=conditioning, labels=True, registers=3, variant="nano/4")
    each = jnp.full(16, TIME)
    for view in (None, HIDDEN):
        assert difference(predict(model, TIME, view), predict(model, each, view)) < 2e-5
    represent = eqx.filter_jit(lambda model, t: model.represent(IMAGE, model.cond(LABEL).at(t)))
    assert difference(represent(model, TIME), represent(model, each)) < 2e-5


@pytest.mark.parametrize("conditioning", MODULATIONS)
def test_each_patch_has_its_own_time(random_model, conditioning):
    model = random_model(16, conditioning=conditioning, labels=True, registers=3)
    for view in (None, HIDDEN):
        before = predict(model, TIMES, view)
        for patch in (int(ORDER[0]), int(ORDER[-1])):  # a visible one, and one that HIDDEN hides
            assert difference(before, predict(model, TIMES.at[patch].add(300.0), view)) > 1e-3
    # Times go with their patches, in whatever order these enter the encoder.
    assert difference(predict(model, TIMES), predict(model, TIMES, View(ORDER, kept=16))) < 2e-5
    # With an identity for all blocks, what the head makes of a patch follows from the time of this patch alone.
    still = [jax.tree.map(jnp.zeros_like, stack.conditioning) for stack in (model.encoder, model.decoder)]
    model = eqx.tree_at(lambda m: (m.encoder.conditioning, m.decoder.conditioning), model, tuple(still))
    before, after = (predict(model, times).x0 for times in (TIMES, TIMES.at[6].add(300.0)))
    changed = np.asarray(before != after).any(-1)
    assert changed[4:8, 8:12].all()  # row 1, column 2
    assert changed.sum() == 16


def test_tokens_of_the_whole_image_are_told_the_mean_of_the_times(random_model):
    model = random_model(16, labels=True, registers=3)
    encode = eqx.filter_jit(lambda t: with_tokens(model, IMAGE, model.cond(LABEL).at(t), HIDDEN)[1])
    # Patches that the encoder does not see, so that their times reach it through the mean alone.
    one, other = ORDER[6], ORDER[7]
    swapped = TIMES.at[one].set(TIMES[other]).at[other].set(TIMES[one])
    assert difference(encode(TIMES), encode(swapped)) < 1e-5
    assert difference(encode(TIMES), encode(TIMES.at[one].add(300.0))) > 1e-3


def test_one_token_cannot_tell_the_times_of_patches(random_model):
    model = random_model(16, conditioning="token")
    with pytest.raises(ValueError, match="does not support one time per patch"):
        model(IMAGE, model.cond().at(TIMES))


def test_an_average_velocity_depends_on_both_ends_of_its_interval(random_model):
    model = random_model(16, labels=True, prediction="u")
    average = eqx.filter_jit(lambda t, r=None: model(IMAGE, model.cond(LABEL).at(t, r), HIDDEN))
    r = jnp.asarray(40.0)
    before = average(TIME, r)
    assert difference(average(TIME), average(TIME, TIME)) == 0
    assert difference(before, average(TIME)) > 1e-3
    assert difference(before, average(TIME, jnp.asarray(0.0))) > 1e-3
    assert difference(before, average(TIME + 100.0, r + 100.0)) > 1e-3  # not on the length alone
    # Each patch may have its own interval, with a beginning that they share or not.
    each = jnp.full(16, TIME), jnp.full(16, r)
    assert difference(average(*each), before) < 2e-5
    assert difference(average(each[0], r), before) < 2e-5
    assert difference(average(each[0], each[1].at[int(ORDER[0])].set(0.0)), before) > 1e-3


def test_a_network_of_average_velocities_is_not_told_a_single_time(random_model):
    with pytest.raises(TypeError, match="needs an IntervalCond, not a Cond"):
        random_model(16, prediction="u")(IMAGE, Cond(TIME, LABEL))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_gradient_goes_through_the_slope_of_an_average_velocity(random_model, remat):
    """What MeanFlow takes: a jvp in (x, r, t) inside a gradient, a scan, a vmap; its blocks scanned and recomputed."""
    model = random_model(8, labels=True, prediction="u", remat=remat)
    x, dx = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 2, 8, 8, 3)), jnp.float32)  # two rows of two images
    t = jnp.asarray([[200.0, 500.0], [700.0, 1000.0]])
    r = jnp.asarray([[0.0, 500.0], [300.0, 10.0]])

    @eqx.filter_jit
    def value_and_derivative(model, step, ahead):
        """Mean square of the slopes and its derivative by a step in the weights; velocities, slopes."""

        def slope(kernel, x, dx, t, r):
            def velocity(x, r, t):
                return eqx.tree_at(_length_kernel, model, kernel)(x, model.cond(LABEL).at(t, r)).v

            dt, dr = 0.5, -0.3
            now = (x + ahead * dx, r + ahead * dr, t + ahead * dt)
            return jax.jvp(velocity, now, (dx, jnp.asarray(dr), jnp.asarray(dt)))

        def loss(step):
            kernel = _length_kernel(model)
            kernel = kernel + step * jnp.cos(jnp.arange(kernel.size, dtype=jnp.float32)).reshape(kernel.shape)
            row = jax.vmap(slope, in_axes=(None, 0, 0, 0, 0))
            velocities, slopes = jax.lax.map(lambda images: row(kernel, *images), (x, dx, t, r))
            return jnp.mean(slopes**2), (velocities, slopes)

        return jax.value_and_grad(loss, has_aux=True)(step)

    h, none = 4e-3, jnp.asarray(0.0)
    (_, (_, slopes)), derivative = value_and_derivative(model, none, none)
    after, before = (value_and_derivative(model, none, jnp.asarray(s * h))[0][1][0] for s in (1, -1))
    assert np.linalg.norm(slopes - (after - before) / (2 * h)) < 1e-2 * np.linalg.norm(slopes)
    more, less = (float(value_and_derivative(model, jnp.asarray(s * h), none)[0][0]) for s in (1, -1))
    np.testing.assert_allclose(derivative, (more - less) / (2 * h), rtol=2e-2)
    assert abs(derivative) > 1e-2


def _length_kernel(model):
    return model.condition.length.up.kernel
