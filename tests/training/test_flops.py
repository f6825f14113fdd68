"""What is counted for a step, against a formula of the network, its gradient and the compiler."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from umd_eqx.core.masking import View, draw_order, num_kept
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.types import Batch
from umd_eqx.models import AutoEncoder, ModelConfig
from umd_eqx.models.vit.conditioning import AdaLNZero, SharedAdaLN, Token
from umd_eqx.models.vit.stack import Stack
from umd_eqx.objectives import denoising, masked_denoising, masked_reconstruction, unified
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.training import flops
from umd_eqx.training.flops import peak_flops, product_flops, step_flops

SIZE, CHANNELS, CLASSES = 28, 1, 10
IMAGE = (SIZE, SIZE, CHANNELS)


def unrolled(**fields) -> AutoEncoder:
    """Shapes only. Unrolled, because XLA counts the body of a loop once."""
    config = ModelConfig(**{"scan": False, "remat": "none", "class_tokens": 4} | fields)
    return eqx.filter_eval_shape(lambda key: config.build(SIZE, CHANNELS, CLASSES, key=key), jax.random.key(0))


def forward(model: AutoEncoder, mask_ratio: float) -> tuple:
    """One forward pass of one image as a function of arrays, and the shapes of these."""
    arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def function(arrays, x, key):
        view = View(draw_order(key, model.num_patches), num_kept(model.num_patches, mask_ratio))
        network = eqx.combine(arrays, static)
        return network(x, network.cond(1).at(jnp.asarray(3.0)), view if mask_ratio else None)

    return function, arrays, jax.ShapeDtypeStruct((SIZE, SIZE, CHANNELS), jnp.float32), jax.random.key(0)


def by_hand(model: AutoEncoder, mask_ratio: float) -> int:
    """The products of one forward pass of one image."""
    kept, n, k = num_kept(model.num_patches, mask_ratio), model.num_patches, len(model.class_tokens)
    condition = model.condition.time.down.kernel.shape[1]
    total = 2 * (2 * condition * 2 * condition) * (1 if model.condition.label is None else 2)
    total += 2 * n * model.embed.kernel.size + of_stack(model.encoder, k + kept)
    total += 0 if model.bridge is None else 2 * (1 + kept) * model.bridge.kernel.size
    total += of_stack(model.decoder, 1 + n)
    total += 0 if model.head.modulation is None else 2 * model.head.modulation.kernel.size
    return total + 2 * n * model.head.kernel.size


def of_stack(stack: Stack, tokens: int) -> int:
    depth, width = stack.blocks.norm1.scale.shape
    total = depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
    match stack.conditioning:
        case AdaLNZero(layers=layers):
            return total + 2 * layers.kernel.size  # its kernel has the depth already
        case SharedAdaLN(shared=shared):
            return total + 2 * shared.kernel.size
        case Token(project=project):
            # Queries, keys and values of one more token, to which every token attends.
            total += depth * (6 * width**2 + 4 * tokens * width)
            return total + (0 if project is None else 2 * project.kernel.size)
    raise AssertionError(stack.conditioning)


CASES = [
    (variant, conditioning, labels, mask_ratio)
    for variant in ("mu/7", "nano/4")  # one width for encoder and decoder, and two with a bridge between them
    for conditioning in ("adaln", "shared-adaln", "token")
    for labels, mask_ratio in ((False, 0.75), (True, 0.0))
]


@pytest.mark.parametrize(("variant", "conditioning", "labels", "mask_ratio"), CASES)
def test_every_product_of_a_forward_pass_is_counted(variant, conditioning, labels, mask_ratio):
    model = unrolled(variant=variant, conditioning=conditioning, labels=labels)
    function, *arguments = forward(model, mask_ratio)
    assert product_flops(function, *arguments) == by_hand(model, mask_ratio)


@pytest.mark.parametrize("conditioning", ["adaln", "shared-adaln", "token"])
def test_the_compiler_counts_a_little_more(conditioning):
    # It counts softmax, normalisation and activations as well: a few per cent at this width.
    function, *arguments = forward(unrolled(variant="S/4", conditioning=conditioning), 0.5)
    counted = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    assert 0.96 * counted < product_flops(function, *arguments) <= counted


def test_the_published_network_is_counted_as_its_published_kin():
    # DiT-B/4 on 32 x 32 latents is published at 5.6 G multiply-adds (Peebles and Xie 2022, table 1) with 12 blocks and
    # 64 tokens. Ours at 64 px has 256 tokens; 12 blocks of width 768 on 260 tokens are 44.2 + 1.2 G alone.
    config = PRETRAIN["dit-b4-in64"]()
    model = eqx.filter_eval_shape(lambda key: config.model.build(64, 3, 1000, key=key), jax.random.key(0))
    encoder = 12 * (24 * 260 * 768**2 + 4 * 260**2 * 768)
    decoder = 4 * (24 * 257 * 768**2 + 4 * 257**2 * 768)
    step = step_flops(config.objective, model, config.path, (64, 64, 3), 2)
    assert 1.0 < step / (3 * 2 * (encoder + decoder)) < 1.01


PASSES = [
    (denoising(), [(8, 0.0)]),
    (masked_denoising(), [(8, 0.5)]),
    (masked_reconstruction(), [(8, 0.75)]),
    (unified(), [(4, 0.375), (4, 0.75)]),
    (unified(no_noise_prob=1.0), [(8, 0.75)]),
    (dataclasses.replace(unified(), no_noise_prob=0.0), [(8, 0.375)]),
]


@pytest.mark.parametrize(("objective", "passes"), PASSES)
def test_a_step_is_three_forward_passes_of_each_image(objective, passes):
    model = unrolled(variant="mu/7")
    expected = 3 * sum(count * by_hand(model, ratio) for count, ratio in passes)
    assert step_flops(objective, model, CosineTable(), IMAGE, 8) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objective", [denoising(), masked_denoising(), masked_reconstruction(), unified()])
def test_a_gradient_takes_as_many_products_as_are_counted_for_it(objective):
    model, batch_size = unrolled(variant="nano/4"), 4
    arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    image = jax.ShapeDtypeStruct((batch_size, *IMAGE), jnp.float32)

    def loss(arrays, image, key):
        batch = Batch(image, jnp.zeros(batch_size, int), jnp.ones(batch_size, bool))
        return objective(eqx.combine(arrays, static), CosineTable(), batch, key)[0]

    counted = product_flops(jax.grad(loss), arrays, image, jax.random.key(0))
    step = step_flops(objective, model, CosineTable(), IMAGE, batch_size)
    # The images and the time need no gradient, and weights shared by images of a batch may be read together.
    assert 0.97 * step < counted <= step


def test_how_layers_are_computed_does_not_change_their_cost():
    one, other = (
        step_flops(unified(), model, CosineTable(), IMAGE, 4)
        for model in (unrolled(variant="mu/7"), unrolled(variant="mu/7", scan=True, remat="full", dtype="bfloat16"))
    )
    assert one == other


def test_convolutions_loops_and_branches_are_counted():
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 2, 6))

    def convolve(x, kernel):  # in two groups of channels
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=axes, feature_group_count=2)

    assert product_flops(convolve, x, kernel) == 2 * (4 * 4 * 6) * (3 * 3 * 2)

    def enlarge(x, kernel):  # each pixel becomes 2 x 2, by a product with each place of the kernel
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert product_flops(enlarge, jnp.ones((1, 8, 8, 4)), jnp.ones((2, 2, 4, 6))) == 2 * (8 * 8 * 4) * (2 * 2 * 6)
    square = jnp.ones((5, 5))
    assert product_flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ y, x), square) == 7 * 250
    assert product_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), square) == 500
    with pytest.raises(ValueError, match="while"):
        product_flops(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x), square)


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
