"""Muon and LARS: what they do to a matrix, layer by layer, and which parameters they leave to the common rule."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.models.vit.blocks import Block, BlockConfig
from umd_eqx.models.vit.layers import Linear
from umd_eqx.training.optim import is_stacked
from umd_eqx.training.optimisers import LARS, OPTIMISERS, AdamW, Muon

DEPTH, WIDTH = 3, 8
LR = optax.constant_schedule(0.1)


class Network(eqx.Module):
    embed: Linear
    blocks: Any


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


@pytest.fixture(scope="module", params=["gelu", "swiglu"])
def stacked(request):
    """A network whose blocks are one PyTree with a leading axis of the depth, as parameters."""
    config = BlockConfig(mlp=request.param, qk_norm=True)
    blocks = eqx.filter_vmap(lambda key: Block.init(WIDTH, 2, config, key=key))(
        jax.random.split(jax.random.key(0), DEPTH)
    )
    network = Network(Linear.init(5, WIDTH, key=jax.random.key(1)), blocks)
    return random_like(eqx.filter(network, eqx.is_inexact_array), 0)


def unstacked(network: Network) -> Network:
    """The same layers, each a block of its own."""
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], network.blocks) for i in range(DEPTH)]
    return Network(network.embed, layers)


def steps(optimiser, params, gradients):
    """The parameters after each of some updates."""
    transformation = optimiser.transformation(LR)
    state, after = transformation.init(params), []
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after


@pytest.mark.parametrize("optimiser", [Muon(steps=1), Muon(steps=1, rms=None, adam_lr=1e-5), LARS(steps=1)], ids=repr)
def test_stacked_layers_are_updated_as_the_same_layers_unstacked(stacked, optimiser):
    gradients = [random_like(stacked, seed) for seed in (1, 2)]
    together = steps(optimiser, stacked, gradients)
    apart = steps(optimiser, unstacked(stacked), map(unstacked, gradients))
    for one, other in zip(together, apart, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), unstacked(one), other)


def test_leaves_with_an_axis_of_the_depth_are_told_by_their_path(stacked, random_model):
    for network, expected in ((stacked, True), (unstacked(stacked), False)):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(network.blocks)]
        assert {is_stacked((jax.tree_util.GetAttrKey("blocks"), *path)) for path in paths} == {expected}
    model = eqx.filter(random_model(labels=True), eqx.is_inexact_array)
    depths = {name: getattr(model, name).blocks.norm1.scale.shape[0] for name in ("encoder", "decoder")}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        inner = {entry.name for entry in path if isinstance(entry, jax.tree_util.GetAttrKey)}
        assert is_stacked(path) == bool({"blocks", "layers"} & inner)
        if is_stacked(path):
            assert leaf.shape[0] == depths[path[0].name]


def test_a_matrix_is_orthogonalised_and_scaled_as_adamw_would(stacked):
    gradient = random_like(stacked, 1)
    (after,) = steps(Muon(steps=1, weight_decay=0.0), stacked, [gradient])
    kernels = [lambda n: n.attention.qkv.kernel, lambda n: n.mlp.up.kernel, lambda n: n.mlp.down.kernel]
    for pick in kernels:
        for update in np.asarray(pick(after.blocks) - pick(stacked.blocks)) / 0.1:
            # Newton and Schulz bring the singular values near 1, not to it.
            singular = np.linalg.svd(update / (0.2 * max(update.shape) ** 0.5), compute_uv=False)
            assert np.all((singular > 0.6) & (singular < 1.3))
            assert np.sqrt(np.mean(update**2)) == pytest.approx(0.2, rel=0.2)


def test_each_matrix_is_updated_as_optax_updates_it_alone(stacked):
    gradient = jax.tree.map(lambda leaf: leaf * 1e-3, random_like(stacked, 1))  # not clipped
    (after,) = steps(Muon(steps=1, weight_decay=0.1), stacked, [gradient])
    alone = optax.contrib.muon(0.1, weight_decay=0.1, consistent_rms=0.2)
    for i in range(DEPTH):
        kernel, slope = stacked.blocks.attention.out.kernel[i], gradient.blocks.attention.out.kernel[i]
        update, _ = alone.update(slope, alone.init(kernel), kernel)
        np.testing.assert_allclose(after.blocks.attention.out.kernel[i], kernel + update, rtol=1e-4, atol=1e-6)


MATRICES = {
    f".{stack}.blocks.{layer}.kernel"
    for stack in ("encoder", "decoder")
    for layer in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
}


@pytest.mark.parametrize("conditioning", ["adaln", "shared-adaln", "token"])
def test_all_but_the_matrices_of_the_blocks_is_under_adamw(random_model, conditioning):
    params = eqx.filter(random_model(labels=True, conditioning=conditioning), eqx.is_inexact_array)
    gradients = [random_like(params, seed) for seed in (1, 2)]
    common = {"steps": 1, "weight_decay": 0.1, "beta1": 0.8}
    (_, muon), (adamw_once, adamw) = (steps(optimiser(**common), params, gradients) for optimiser in (Muon, AdamW))
    slower_once, slower = steps(Muon(**common, lr=1e-3, adam_lr=5e-4), params, gradients)

    def leaves(tree):
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    ours, theirs = leaves(muon), leaves(adamw)
    same = {name for name in ours if np.array_equal(ours[name], theirs[name])}
    assert set(ours) - same == MATRICES
    # The learning rate of AdamW alone is halved.
    changed = {name for name, leaf in leaves(slower).items() if not np.array_equal(leaf, ours[name])}
    assert changed == same
    before, whole, half = leaves(params), leaves(adamw_once), leaves(slower_once)
    for name in same:
        np.testing.assert_allclose(half[name] - before[name], (whole[name] - before[name]) / 2, rtol=1e-2, atol=1e-6)


def test_muon_needs_blocks():
    alone = eqx.filter(Linear.init(3, 3, key=jax.random.key(0)), eqx.is_inexact_array)
    with pytest.raises(BadInput, match=r"optim: .*no blocks"):
        Muon(steps=1).transformation(LR).init(alone)


def test_lars_takes_a_share_of_the_weights_of_each_layer(stacked):
    gradient = random_like(stacked, 1)
    (after,) = steps(LARS(steps=1, trust=0.01), stacked, [gradient])
    change = jax.tree.map(lambda a, b: np.asarray(a - b) / 0.1, after, stacked)
    for i in range(DEPTH):
        update, kernel = change.blocks.mlp.up.kernel[i], stacked.blocks.mlp.up.kernel[i]
        assert np.linalg.norm(update) == pytest.approx(0.01 * np.linalg.norm(kernel), rel=1e-4)
    # Biases and scales move by the clipped gradient itself.
    clipped = 1.0 / optax.tree.norm(gradient)
    for pick in (lambda n: n.blocks.mlp.up.bias, lambda n: n.blocks.norm1.scale, lambda n: n.embed.bias):
        np.testing.assert_allclose(pick(change), -pick(gradient) * clipped, rtol=1e-3, atol=1e-6)


def test_lars_has_momentum_and_decays_no_bias(stacked):
    still = jax.tree.map(jnp.zeros_like, stacked)
    gradients = [random_like(stacked, 1), still]
    first, second = steps(LARS(steps=1), stacked, gradients)
    bias = [np.asarray(network.embed.bias) for network in (stacked, first, second)]
    np.testing.assert_allclose(bias[2] - bias[1], 0.9 * (bias[1] - bias[0]), rtol=1e-3, atol=1e-7)
    (decayed,) = steps(LARS(steps=1, weight_decay=0.1), stacked, [still])
    np.testing.assert_array_equal(decayed.embed.bias, stacked.embed.bias)
    np.testing.assert_array_equal(decayed.blocks.norm1.scale, stacked.blocks.norm1.scale)
    assert not np.array_equal(decayed.embed.kernel, stacked.embed.kernel)


@pytest.mark.parametrize(
    ("optimiser", "field"),
    [
        (Muon(steps=1, momentum=1.0), "optim.momentum"),
        (Muon(steps=1, rms=0.0), "optim.rms"),
        (Muon(steps=1, ns_steps=0), "optim.ns_steps"),
        (Muon(steps=1, adam_lr=-1.0), "optim.adam_lr"),
        (Muon(steps=1, beta2=1.0), "optim.beta2"),
        (Muon(), "optim.epochs"),
        (LARS(steps=1, trust=0.0), "optim.trust"),
        (LARS(steps=1, momentum=-0.1), "optim.momentum"),
        (LARS(steps=1, lr=float("inf")), "optim.lr"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(optimiser, field):
    with pytest.raises(BadInput) as refusal:
        optimiser.validate()
    assert refusal.value.field == field


def test_every_optimiser_has_a_name():
    assert {name: type(make()) for name, make in OPTIMISERS.items()} == {"adamw": AdamW, "muon": Muon, "lars": LARS}
