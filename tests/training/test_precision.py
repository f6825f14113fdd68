"""With 64-bit floats enabled, everything that is trained is float32 all the same."""

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.paths import Clean, CosineTable, LinearTable, RectifiedFlow
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import Batch
from umd_eqx.models import ModelConfig
from umd_eqx.models.extractors.configs import FashionClassifierConfig
from umd_eqx.models.tokenizers.configs import FSQTokenizer, KLTokenizer
from umd_eqx.models.vit.blocks import BlockConfig
from umd_eqx.objectives import Classification, Tokenizing, unified
from umd_eqx.sampling import SAMPLERS
from umd_eqx.training.optim import schedule
from umd_eqx.training.optimisers import AdamW
from umd_eqx.training.step import Parts, TrainState, train_step

SIZE, KEY = 28, jax.random.key(0)
VIT = ModelConfig(variant="mu/7", labels=True)
# (network, objective, path): every conditioning of the ViT, both tokenizers, and the classifier.
OPTIONS = BlockConfig(rotary=True, qk_norm=True, mlp="swiglu")
SYSTEMS = {
    "adaln": (VIT, unified(), CosineTable()),
    "shared-adaln": (ModelConfig(variant="mu/7", labels=True, conditioning="shared-adaln"), unified(), LinearTable()),
    "token": (ModelConfig(variant="mu/7", labels=True, conditioning="token"), unified(), RectifiedFlow()),
    "options": (ModelConfig(variant="mu/7", registers=2, block=OPTIONS), unified(), CosineTable()),
    "kl": (KLTokenizer(), Tokenizing(), Clean()),
    "fsq": (FSQTokenizer(), Tokenizing(perceptual_weight=0.1), Clean()),
    "classifier": (FashionClassifierConfig(), Classification(label_smoothing=0.1), Clean()),
}
BATCH = Batch(np.zeros((8, SIZE, SIZE, 1), np.float32), np.zeros(8, np.int32), np.ones(8, bool))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def not_float32(tree) -> dict[str, jnp.dtype]:
    """The floating-point arrays of another type, by their places."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    dtypes = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in leaves if hasattr(leaf, "dtype")}
    return {name: d for name, d in dtypes.items() if jnp.issubdtype(d, jnp.floating) and d != jnp.float32}


def promotions(function, *arguments) -> set[str]:
    """What a program computes in float64, but for single numbers such as a learning rate."""
    arrays, static = eqx.partition(arguments, eqx.is_array)
    program = jax.make_jaxpr(lambda arrays: eqx.filter(function(*eqx.combine(arrays, static)), eqx.is_array))(arrays)
    results = [(eqn.primitive.name, out.aval) for eqn in _equations(program.jaxpr) for out in eqn.outvars]
    return {name for name, aval in results if getattr(aval, "dtype", None) == jnp.float64 and aval.shape}


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_trained_is_float32_and_a_step_leaves_it_so(name):
    config, objective, path = SYSTEMS[name]
    optim = AdamW(steps=10, warmup=0.1)
    lr = schedule(optim, 100, 8)
    parts = Parts(objective, path, optim.transformation(lr), lr, make_mesh(jax.devices()[:1]), 0, 0.1)

    def init() -> TrainState:
        return TrainState.init(config.build(SIZE, 1, 10, key=KEY), parts.optimiser, ema=True)

    state = eqx.filter_eval_shape(init)
    assert not_float32(state) == {}
    after, metrics = eqx.filter_eval_shape(train_step, parts, state, BATCH)
    assert not_float32((after, metrics["loss"], metrics["grad_norm"])) == {}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_forward_pass_and_its_randomness_are_float32(name):
    config, objective, path = SYSTEMS[name]
    model = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        eqx.filter_eval_shape(lambda: config.build(SIZE, 1, 10, key=KEY)),
    )
    assert promotions(lambda model: objective(model, path, BATCH, KEY), model) == set()


def test_weights_and_draws_are_those_without_64_bit_floats():
    def made():
        model = VIT.build(SIZE, 1, 10, key=KEY)
        return eqx.filter((model, unified().draw(KEY, model, CosineTable(), BATCH.image.shape)), eqx.is_array)

    found = eqx.filter_jit(made)()
    with jax.enable_x64(False):
        usual = eqx.filter_jit(made)()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(usual), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["ddim", "dpmpp"])
def test_samples_are_float32(name):
    model = eqx.filter_eval_shape(lambda: VIT.build(SIZE, 1, 10, key=KEY))
    sampler, noise = SAMPLERS[name](steps=3), jnp.zeros((SIZE, SIZE, 1), jnp.float32)

    def sampled(model):
        return sampler(sampler.denoiser(model, CosineTable(), model.cond(0)), noise, KEY)

    image = eqx.filter_eval_shape(sampled, model)
    assert image.dtype == jnp.float32
