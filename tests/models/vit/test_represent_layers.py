"""The representation after each layer, against networks that end there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.models import AutoEncoder
from umd_eqx.models.vit.stack import Stack

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(3, 16, 16, 3)), jnp.float32)
T = jnp.asarray(50.0)


def over_images(network: AutoEncoder, function) -> list[np.ndarray]:
    """The leaves of a function of network, image and conditioning, for several images."""
    compiled = eqx.filter_jit(lambda network: jax.vmap(lambda x: function(network, x, network.cond().at(T)))(IMAGES))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(compiled(network))]


def cut(stack: Stack, depth: int) -> Stack:
    """The stack of the first blocks, with the same last LayerNorm."""
    first = jax.tree.map(lambda leaf: leaf[:depth], (stack.blocks, stack.conditioning.layers))
    return eqx.tree_at(lambda s: (s.blocks, s.conditioning.layers), stack, first, is_leaf=lambda leaf: leaf is None)


@pytest.mark.parametrize(("conditioning", "scan"), [("adaln", True), ("shared-adaln", True), ("token", False)])
def test_each_layer_is_the_representation_of_the_network_that_ends_there(random_model, conditioning, scan):
    model = random_model(16, variant="nano/4", conditioning=conditioning, scan=scan, registers=2)
    found = over_images(model, lambda m, x, cond: m.represent_layers(x, cond))
    assert len(found) == 2 * len(model.layers) == 2 * (model.encoder.depth + model.decoder.depth)
    assert model.layers[0] == "encoder 1"
    assert model.layers[-1] == f"decoder {model.decoder.depth}"
    for depth in range(1, 1 + model.encoder.depth):
        shorter = eqx.tree_at(lambda m: m.encoder, model, cut(model.encoder, depth))
        expected = over_images(shorter, lambda m, x, cond: m.represent(x, cond))
        for ours, theirs in zip(found[2 * depth - 2 : 2 * depth], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # Blocks that do nothing would pass as any layer.
    assert np.abs(found[0] - found[2]).max() > 0.1


@pytest.mark.parametrize(("conditioning", "dtype"), [("adaln", "float32"), ("token", "bfloat16")])
def test_the_represented_layer_is_the_representation_bit_for_bit(random_model, conditioning, dtype):
    # Of scanned blocks, as in all presets: the compiler may round unrolled blocks otherwise where they are read.
    model = random_model(16, variant="nano/4", conditioning=conditioning, dtype=dtype)
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention is not strict
        layers = over_images(model, lambda m, x, cond: m.represent_layers(x, cond))
        expected = over_images(model, lambda m, x, cond: m.represent(x, cond))
    last = 2 * model.represented_layer
    for ours, theirs in zip(layers[last - 2 : last], expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_the_layers_of_the_decoder_are_what_it_makes_of_the_last_tokens_of_the_encoder(random_model):
    model = random_model(16, variant="nano/4")
    other = random_model(16, variant="nano/4", seed=1)
    deeper = eqx.tree_at(lambda m: m.decoder, model, _doubled(model.decoder, other.decoder))
    assert deeper.layers[-2:] == ("decoder 1", "decoder 2")
    found, expected = (over_images(m, lambda m, x, cond: m.represent_layers(x, cond)) for m in (deeper, model))
    for ours, theirs in zip(found, expected, strict=False):  # all but the added layer
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # The prediction is a linear function of the last tokens of the patches: so is its mean over patches.
    plain = eqx.tree_at(lambda m: m.head.modulation, deeper, None)
    predicted = eqx.filter_jit(jax.vmap(lambda x: plain(x, plain.cond().at(T))))(IMAGES)
    values = np.concatenate([predicted.x0, predicted.eps], axis=-1).reshape(3, 4, 4, 4, 4, 6).mean(axis=(1, 3))
    linear = found[-1] @ np.asarray(plain.head.kernel)
    np.testing.assert_allclose(values, linear.reshape(3, 4, 4, 6) + np.asarray(plain.head.bias), atol=1e-4)


def _doubled(stack: Stack, other: Stack) -> Stack:
    both = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves),
        *((one.blocks, one.conditioning.layers) for one in (stack, other)),
    )
    return eqx.tree_at(lambda s: (s.blocks, s.conditioning.layers), stack, both)
