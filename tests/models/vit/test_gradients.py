"""The network under every transformation of JAX that the project uses, and however it is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.masking import View

RNG = np.random.default_rng(0)
B = 3
IMAGES = jnp.asarray(RNG.normal(size=(B, 8, 8, 3)), jnp.float32)
TIMES = jnp.asarray([0.0, 137.0, 1000.0])
LABELS = jnp.asarray([0, 3, 5])
ORDERS = jnp.asarray(np.stack([RNG.permutation(4) for _ in range(B)]))


def loss(model, x, t, y, order):
    """Of one image."""
    prediction = model(x, model.cond(y).at(t), View(order, kept=2))
    return jnp.mean((prediction.x0 - x) ** 2) + jnp.mean(prediction.eps**2)


def mean_loss(model):
    return jnp.mean(jax.vmap(lambda *one: loss(model, *one))(IMAGES, TIMES, LABELS, ORDERS))


def image(i):
    return IMAGES[i], TIMES[i], LABELS[i], ORDERS[i]


def assert_close(a, b, rtol=1e-4):
    """Leaf by leaf, against the size of the leaf."""
    # In numpy: JAX would compile every operation for every shape.
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        error = np.linalg.norm(np.asarray(x) - np.asarray(y))
        assert error <= rtol * np.linalg.norm(y) + 1e-7, (jax.tree_util.keystr(path), error)


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(labels=True, remat="none")


@pytest.fixture(scope="module")
def gradient(model):
    """Of the mean loss of the batch, the way a training step takes it."""
    return eqx.filter_jit(eqx.filter_grad(mean_loss))(model)


def test_vmap_is_a_loop(model):
    one = eqx.filter_jit(lambda model, x, t, y, order: model(x, model.cond(y).at(t), View(order, kept=2)))
    together = eqx.filter_jit(eqx.filter_vmap(one, in_axes=(None, 0, 0, 0, 0)))(model, IMAGES, TIMES, LABELS, ORDERS)
    for i in range(B):
        assert_close(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], together), one(model, *image(i)), rtol=1e-5)


def test_one_image_has_a_gradient_without_vmap(model, gradient):
    of_one = eqx.filter_jit(eqx.filter_grad(loss))
    each = [of_one(model, *image(i)) for i in range(B)]
    assert_close(jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each), gradient)


def test_gradients_of_images_inside_vmap_average_to_that_of_the_batch(model, gradient):
    each = eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0, 0, 0, 0))
    of_all = eqx.filter_jit(each)(model, IMAGES, TIMES, LABELS, ORDERS)
    assert_close(jax.tree.map(lambda leaf: np.mean(leaf, axis=0), of_all), gradient)


def test_gradient_by_the_image_is_what_a_small_step_sees(model):
    x, t, y, order = image(1)

    @eqx.filter_jit
    def value_and_slope(model, x, direction):
        value, slope = jax.value_and_grad(lambda x: loss(model, x, t, y, order))(x)
        return value, jnp.vdot(slope, direction)

    direction, h = IMAGES[0], 3e-3
    slope = value_and_slope(model, x, direction)[1]
    ahead, behind = (value_and_slope(model, x + s * h * direction, direction)[0] for s in (1, -1))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=5e-3)


@pytest.mark.parametrize("inside_vmap", [False, True])
def test_forward_and_reverse_derivatives_agree(model, inside_vmap):
    # What a sampler's drift and a likelihood's divergence take: <w, J v> both ways, by image and time.
    def both(x, t, y, dx, w):
        def of(x, t):
            return model(x, model.cond(y).at(t)).eps

        forward = jax.jvp(of, (x, t), (dx, jnp.ones_like(t)))[1]
        by_x, by_t = jax.vjp(of, x, t)[1](w)
        return jnp.vdot(w, forward), jnp.vdot(dx, by_x) + by_t

    arguments = (IMAGES, TIMES, LABELS, IMAGES[::-1], jnp.cos(IMAGES))
    if inside_vmap:
        forward, reverse = jax.jit(jax.vmap(both))(*arguments)
    else:
        forward, reverse = jax.jit(both)(*(argument[1] for argument in arguments))
    assert np.all(np.abs(forward) > 1e-3)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


@pytest.mark.parametrize(("scan", "remat"), [(True, "dots"), (True, "full"), (False, "dots")])
def test_scanning_and_recomputing_do_not_change_the_gradient(random_model, gradient, scan, remat):
    other = random_model(labels=True, scan=scan, remat=remat)
    assert_close(eqx.filter_jit(eqx.filter_grad(mean_loss))(other), gradient, rtol=2e-5)
