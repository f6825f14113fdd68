"""The formula for the cost of the network, against what the traced network and the compiler count."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from umd_eqx import flops
from umd_eqx.flops import forward_flops, peak_flops, step_flops
from umd_eqx.masking import View, draw_order, num_kept
from umd_eqx.models import AutoEncoder, ModelConfig
from umd_eqx.objectives import denoising, masked_denoising, masked_reconstruction, unified
from umd_eqx.paths import CosineTable
from umd_eqx.presets import PRETRAIN
from umd_eqx.types import Batch

SIZE, CHANNELS, CLASSES = 28, 1, 10


def unrolled(**fields) -> AutoEncoder:
    """Shapes only. Unrolled, because XLA counts the body of a loop once."""
    config = ModelConfig(**{"scan": False, "remat": "none", "class_tokens": 4} | fields)
    return eqx.filter_eval_shape(lambda key: config.build(SIZE, CHANNELS, CLASSES, key=key), jax.random.key(0))


def forward(model: AutoEncoder, mask_ratio: float) -> tuple:
    """One forward pass of one image as a function of arrays, and the shapes of these."""
    arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def function(arrays, x, key):
        view = View(draw_order(key, model.num_patches), num_kept(model.num_patches, mask_ratio))
        return eqx.combine(arrays, static)(x, jnp.asarray(3.0), jnp.asarray(1), view if mask_ratio else None)

    return function, arrays, jax.ShapeDtypeStruct((SIZE, SIZE, CHANNELS), jnp.float32), jax.random.key(0)


def products(jaxpr) -> int:
    """Floating-point operations of the products in a traced function: two for each multiply-add."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted, _ = equation.params["dimension_numbers"][0]
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
        for inner in jaxprs_in_params(equation.params):
            total += products(inner)
    return total


CASES = [
    (variant, conditioning, labels, mask_ratio)
    for variant in ("mu/7", "nano/4")  # one width for encoder and decoder, and two with a bridge between them
    for conditioning in ("adaln", "shared-adaln", "token")
    for labels, mask_ratio in ((False, 0.75), (True, 0.0))
]


@pytest.mark.parametrize(("variant", "conditioning", "labels", "mask_ratio"), CASES)
def test_the_formula_counts_every_product_of_a_forward_pass(variant, conditioning, labels, mask_ratio):
    model = unrolled(variant=variant, conditioning=conditioning, labels=labels)
    function, *arguments = forward(model, mask_ratio)
    assert forward_flops(model, mask_ratio) == products(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize("conditioning", ["adaln", "shared-adaln", "token"])
def test_the_compiler_counts_a_little_more(conditioning):
    # It counts softmax, normalisation and activations as well: a few per cent at this width.
    model = unrolled(variant="S/4", conditioning=conditioning)
    function, *arguments = forward(model, 0.5)
    counted = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    assert 0.96 * counted < forward_flops(model, 0.5) <= counted


def test_the_published_network_is_counted_as_its_published_kin():
    # DiT-B/4 on 32 x 32 latents is published at 5.6 G multiply-adds (Peebles and Xie 2022, table 1) with 12 blocks and
    # 64 tokens. Ours at 64 px has 256 tokens; 12 blocks of width 768 on 260 tokens are 44.2 + 1.2 G alone.
    config = PRETRAIN["dit-b4-in64"]()
    model = eqx.filter_eval_shape(lambda key: config.model.build(64, 3, 1000, key=key), jax.random.key(0))
    encoder = 12 * (24 * 260 * 768**2 + 4 * 260**2 * 768)
    decoder = 4 * (24 * 257 * 768**2 + 4 * 257**2 * 768)
    assert 1.0 < forward_flops(model, 0.0) / (encoder + decoder) < 1.01


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        (denoising(), [(8, 0.0)]),
        (masked_denoising(), [(8, 0.5)]),
        (masked_reconstruction(), [(8, 0.75)]),
        (unified(), [(4, 0.375), (4, 0.75)]),
        (unified(no_noise_prob=1.0), [(8, 0.75)]),
        (dataclasses.replace(unified(), no_noise_prob=0.0), [(8, 0.375)]),
    ],
)
def test_a_step_is_three_forward_passes_of_each_image(objective, passes):
    model = unrolled(variant="mu/7")
    assert step_flops(model, objective, 8) == 3 * sum(count * forward_flops(model, ratio) for count, ratio in passes)


@pytest.mark.parametrize("objective", [denoising(), masked_denoising(), masked_reconstruction(), unified()])
def test_a_gradient_takes_as_many_products_as_the_formula_says(objective):
    model, batch_size = unrolled(variant="nano/4"), 4
    arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    image = jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, CHANNELS), jnp.float32)

    def loss(arrays, image, key):
        batch = Batch(image, jnp.zeros(batch_size, int), jnp.ones(batch_size, bool))
        return objective(eqx.combine(arrays, static), CosineTable(), batch, key)[0]

    counted = products(jax.make_jaxpr(jax.grad(loss))(arrays, image, jax.random.key(0)).jaxpr)
    # The images and the time need no gradient, and weights shared by images of a batch may be read together.
    assert 0.97 * step_flops(model, objective, batch_size) < counted <= step_flops(model, objective, batch_size)


def test_how_layers_are_computed_does_not_change_their_cost():
    assert forward_flops(unrolled(variant="mu/7"), 0.5) == forward_flops(
        unrolled(variant="mu/7", scan=True, remat="full", dtype="bfloat16"), 0.5
    )


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
    ],
)
def test_a_chip_is_known_by_the_longest_beginning_of_its_name(monkeypatch, kind, peak):
    class Device:
        device_kind = kind

    monkeypatch.setattr(flops.jax, "devices", lambda: [Device()])
    value, source = peak_flops()
    assert value == peak
    assert "data sheet" in source


def test_an_unknown_machine_is_measured():
    value, source = peak_flops(seconds=0.02)
    assert value > 1e8
    assert "measured" in source
