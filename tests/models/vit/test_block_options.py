"""What a block may do otherwise than the published one: rotation by position, QK-norm, SwiGLU, registers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases.network import with_tokens

from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import View
from umd_eqx.models import ModelConfig
from umd_eqx.models.vit.attention import rotate
from umd_eqx.models.vit.blocks import BlockConfig
from umd_eqx.models.vit.layers import Mlp, RMSNorm, SwiGLU

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)
TIME, LABEL = jnp.asarray(137.0), jnp.asarray(2)
ORDER = jnp.asarray(RNG.permutation(16))
ALL = BlockConfig(rotary=True, qk_norm=True, mlp="swiglu")
OPTIONS = {
    "rotary": BlockConfig(rotary=True),
    "qk_norm": BlockConfig(qk_norm=True),
    "swiglu": BlockConfig(mlp="swiglu"),
}

predict = eqx.filter_jit(lambda model, x, view=None: model(x, model.cond(LABEL).at(TIME), view))


def difference(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(max(np.max(np.abs(np.asarray(x) - np.asarray(y))) for x, y in pairs))


def test_products_of_rotated_heads_depend_on_the_difference_of_positions():
    query, key = jnp.asarray(RNG.normal(size=(2, 1, 1, 2, 8)), jnp.float32)

    def product(at, other):
        return np.sum(rotate(query, jnp.asarray([[at]])) * rotate(key, jnp.asarray([[other]])), axis=-1)

    here = product((3.0, 5.0), (1.0, 7.0))
    np.testing.assert_allclose(here, product((13.0, 9.0), (11.0, 11.0)), rtol=1e-4)
    for other in ((2.0, 7.0), (1.0, 6.0)):  # rows and columns both count
        assert np.max(np.abs(here - product((3.0, 5.0), other))) > 1e-2


def test_a_token_without_a_place_is_not_rotated_and_lengths_are_kept():
    heads = jnp.asarray(RNG.normal(size=(1, 2, 3, 8)), jnp.float32)
    rotated = rotate(heads, jnp.asarray([[[0.0, 0.0], [4.0, 9.0]]]))
    np.testing.assert_array_equal(rotated[:, 0], heads[:, 0])
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(heads, axis=-1), rtol=1e-5)
    assert difference(rotated[:, 1], heads[:, 1]) > 0.1


def test_rms_norm_by_hand():
    norm = RMSNorm(jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(norm(jnp.asarray([[3.0, 4.0]]))[0], np.array([3.0, 8.0]) / np.sqrt(12.5), rtol=1e-5)


def test_swiglu_by_hand_and_as_large_as_the_mlp():
    small = SwiGLU.init(3, key=jax.random.key(0))
    x = RNG.normal(size=3).astype(np.float32)
    a, b = np.split(x @ np.asarray(small.up.kernel), 2)
    expected = (a / (1 + np.exp(-a)) * b) @ np.asarray(small.down.kernel)
    np.testing.assert_allclose(small(jnp.asarray(x)), expected, rtol=1e-4)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(mlp.init(384, key=jax.random.key(0)))) for mlp in (Mlp, SwiGLU)]
    assert abs(sizes[1] / sizes[0] - 1) < 0.01


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_the_prediction(random_model, option):
    plain, other = random_model(16, labels=True), random_model(16, labels=True, block=OPTIONS[option])
    if option != "swiglu":  # whose kernels are others anyway
        same = {jax.tree_util.keystr(k): leaf for k, leaf in jax.tree_util.tree_leaves_with_path(plain)}
        other = jax.tree_util.tree_map_with_path(lambda k, leaf: same.get(jax.tree_util.keystr(k), leaf), other)
    assert difference(predict(plain, IMAGES[0]), predict(other, IMAGES[0])) > 1e-2


@pytest.mark.parametrize("conditioning", ["adaln", "token"])
def test_positions_go_with_their_patches(random_model, conditioning):
    # The order in which visible patches enter does not matter, rotated or not: each carries its own position.
    model = random_model(16, labels=True, conditioning=conditioning, block=ALL, registers=3)
    whole = predict(model, IMAGES[0])
    assert difference(whole, predict(model, IMAGES[0], View(ORDER, kept=16))) < 5e-5
    some, turned = (View(order, kept=6) for order in (ORDER, jnp.concatenate([ORDER[5::-1], ORDER[6:]])))
    assert difference(predict(model, IMAGES[0], some), predict(model, IMAGES[0], turned)) < 5e-5


def test_registers_change_the_representation_and_are_not_in_it(random_model):
    model = random_model(16, labels=True, registers=3)
    cond = model.cond(LABEL).at(TIME)
    represent = eqx.filter_jit(lambda model: model.represent(IMAGES[0], cond))
    _, tokens = eqx.filter_jit(lambda model: with_tokens(model, IMAGES[0], cond))(model)
    assert tokens.shape == (4 + 3 + 16, 64)
    found = represent(model)
    np.testing.assert_allclose(found.class_tokens, np.mean(tokens[:4], axis=0), atol=1e-6)
    np.testing.assert_allclose(found.patches, np.mean(tokens[7:], axis=0), atol=1e-6)
    moved = eqx.tree_at(lambda m: m.registers, model, replace_fn=lambda x: -x)
    assert difference(found, represent(moved)) > 1e-3


def test_every_parameter_of_the_options_matters(random_model):
    model = random_model(16, labels=True, block=ALL, registers=2, remat="none")

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        predictions = jax.vmap(lambda x: predict(model, x, View(ORDER, kept=6)))(IMAGES)
        return jnp.mean(predictions.x0**2) + jnp.mean(predictions.eps**3)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(model)):
        assert np.any(np.asarray(leaf) != 0), path


@pytest.mark.parametrize("block", [BlockConfig(), ALL], ids=["published", "options"])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_tangent_goes_through_the_network_inside_a_gradient(random_model, block, remat):
    """What MeanFlow takes: the gradient of a function of a jvp, under vmap, scan and rematerialisation."""
    model = random_model(8, block=block, remat=remat)
    images, tangents = IMAGES[:, :8, :8], IMAGES[:, 8:, 8:]

    def slope(model, x, dx):
        return jax.jvp(lambda x, t: model(x, model.cond(LABEL).at(t)).eps, (x, TIME), (dx, jnp.asarray(0.5)))[1]

    @eqx.filter_jit
    def value_and_direction(model, step):
        kernel = lambda m: m.encoder.blocks.mlp.up.kernel  # noqa: E731
        direction = jnp.cos(jnp.arange(kernel(model).size, dtype=jnp.float32)).reshape(kernel(model).shape)

        def loss(amount):
            moved = eqx.tree_at(kernel, model, kernel(model) + amount * direction)
            return jnp.mean(jax.vmap(slope, in_axes=(None, 0, 0))(moved, images, tangents) ** 2)

        return jax.value_and_grad(loss)(step)

    _, derivative = value_and_direction(model, jnp.asarray(0.0))
    h = 1e-3
    ahead, behind = (float(value_and_direction(model, jnp.asarray(s * h))[0]) for s in (1, -1))
    assert abs(derivative) > 1e-4
    np.testing.assert_allclose(derivative, (ahead - behind) / (2 * h), rtol=2e-2)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("model.registers", ModelConfig("mu/4", registers=-1)),
        ("model.block.rotary", ModelConfig("odd/4", block=BlockConfig(rotary=True))),
    ],
)
def test_options_that_cannot_be_are_refused(monkeypatch, field, config):
    from umd_eqx.models.vit import variants

    monkeypatch.setitem(variants.VARIANTS, "odd", (variants.Size(60, 1, 2), variants.Size(60, 1, 2)))  # heads of 30
    with pytest.raises(BadInput, match=field):
        config.validate(8)
