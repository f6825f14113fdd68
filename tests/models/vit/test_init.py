import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.models import ModelConfig
from umd_eqx.models.base import num_parameters
from umd_eqx.models.vit.blocks import Block, BlockConfig
from umd_eqx.models.vit.conditioning import AdaLNZero, SharedAdaLN
from umd_eqx.models.vit.layers import LayerNorm, Linear, sinusoid
from umd_eqx.models.vit.packed import Embedded, Packed, Segment
from umd_eqx.models.vit.stack import Stack
from umd_eqx.models.vit.variants import VARIANTS

INIT = json.loads((Path(__file__).parents[2] / "golden_data/init_stats.json").read_text())


@pytest.mark.parametrize(("row", "count"), INIT["param_counts"].items())
def test_parameter_counts_are_the_published_ones(row, count):
    variant, size, channels, adaln, classes = re.fullmatch(r"(\S+)@(\d+)x(\d) (adaln )?ncls=(\S+)", row).groups()
    config = ModelConfig(variant, conditioning="adaln" if adaln else "token", labels=classes != "None")
    key = jax.random.key(0)
    model = eqx.filter_eval_shape(lambda key: config.build(int(size), int(channels), 1000, key=key), key)
    assert num_parameters(model) == count


def by_reference_names(model) -> dict[str, np.ndarray]:
    """The arrays of our network by the reference's names."""
    arrays = {
        "cls": model.class_tokens,
        "pos_embedding": model.positions,
        "dec_pos_embedding": model.decoder_positions,
        "image_mask_embedding": model.mask_token,
        "label_emb/embedding/embedding": model.condition.label_table,
        "final_conv/kernel": model.head.kernel,
        "final_conv/bias": model.head.bias,
    }
    linears = {"embedding": model.embed, "final_modulation": model.head.modulation}
    for name, trunk in (("time_trunk", model.condition.time), ("label_trunk", model.condition.label)):
        linears |= {f"{name}/Dense_0": trunk.up, f"{name}/Dense_1": trunk.down}
    norms = {}
    for name, stack in (("Encoder", model.encoder), ("Decoder", model.decoder)):
        block = f"{name}/ScanCheckpointEncoder1DBlock_0"
        attention, width = stack.blocks.attention, stack.norm.scale.shape[0]
        linears[f"{block}/MultiHeadDotProductAttention_0/out"] = attention.out
        for i, part in enumerate(("query", "key", "value")):
            of_part = lambda leaf, i=i, width=width: leaf[..., i * width : (i + 1) * width]  # noqa: E731
            linears[f"{block}/MultiHeadDotProductAttention_0/{part}"] = jax.tree.map(of_part, attention.qkv)
        linears |= {
            f"{block}/MlpBlock_0/Dense_0": stack.blocks.mlp.up,
            f"{block}/MlpBlock_0/Dense_1": stack.blocks.mlp.down,
        }
        linears[f"{block}/Dense_0"] = stack.conditioning.layers
        norms |= {f"{block}/LayerNorm_0": stack.blocks.norm1, f"{block}/LayerNorm_1": stack.blocks.norm2}
        norms[f"{name}/encoder_norm"] = stack.norm
    for name, linear in linears.items():
        if linear is not None:
            arrays |= {f"{name}/kernel": linear.kernel, f"{name}/bias": linear.bias}
    for name, norm in norms.items():
        arrays |= {f"{name}/scale": norm.scale, f"{name}/bias": norm.bias}
    return {name: np.asarray(value) for name, value in arrays.items()}


def test_a_fresh_network_has_the_statistics_of_the_reference():
    # With AdaLN; the network without has the same parts and fewer.
    config = ModelConfig("S/4", labels=True, class_token_std=0.0)
    ours = by_reference_names(jax.jit(lambda key: config.build(64, 3, 10, key=key))(jax.random.key(0)))
    reference = INIT["official_init_S4_64"]["adaln"]
    assert ours.keys() == reference.keys()
    for name, expected in reference.items():
        value = ours[name]
        assert value.size == np.prod(expected["shape"]), name
        if expected["std"] == 0:
            np.testing.assert_array_equal(value, expected["mean"], err_msg=name)
            continue
        # 5 %, or 4 standard errors of the difference between two samples of a small array.
        assert value.std() == pytest.approx(expected["std"], rel=max(0.05, 4 / value.size**0.5)), name
        assert abs(value.mean()) < 5 * value.std() / value.size**0.5, name
        # How far the tails reach tells a uniform, a truncated and a whole normal distribution apart.
        reach = max(-expected["min"], expected["max"]) / expected["std"]
        assert np.abs(value).max() / value.std() == pytest.approx(reach, rel=0.2), name


def test_class_tokens_differ_from_the_start_where_they_are_drawn():
    config = ModelConfig("mu/4", class_tokens=3, class_token_std=0.02)
    tokens = jax.jit(lambda key: config.build(8, 3, 5, key=key).class_tokens)(jax.random.key(0))
    assert tokens.shape == (3, 64)
    assert float(jnp.std(tokens)) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("conditioning", [AdaLNZero, SharedAdaLN])
def test_modulated_blocks_are_the_identity_at_the_start(conditioning):
    width, depth = 16, 2
    keys = jax.random.split(jax.random.key(0), 3)
    start = conditioning.init(24, width, depth, key=keys[0])
    stack = Stack.init(width, depth, 2, start, BlockConfig(), scan=True, remat="none", key=keys[1])
    x, c = jax.random.normal(keys[2], (1, 5, width)), Embedded(jnp.ones((1, 1, 24)))
    packed = Packed(x, jnp.zeros((1, 5, 2)), (Segment(1, 5),))
    np.testing.assert_allclose(stack(packed, c).tokens, stack.norm(x), atol=1e-6)
    # ... and no longer, once the modulation says something.
    moved = eqx.tree_at(lambda s: s.conditioning, stack, jax.tree.map(lambda leaf: leaf + 0.1, start))
    assert float(jnp.max(jnp.abs(moved(packed, c).tokens - stack.norm(x)))) > 0.1


def test_a_layer_is_a_product_and_a_bias():
    linear = Linear(jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), jnp.asarray([10.0, 20.0]))
    np.testing.assert_array_equal(linear(jnp.asarray([1.0, 0.0, 2.0])), [21, 34])


def test_layer_norm_by_hand_where_its_epsilon_shows():
    norm = LayerNorm(jnp.asarray([1.0, 2.0]), jnp.asarray([0.0, 0.5]))
    # Mean 0, variance 1e-6 as large as the epsilon.
    expected = np.asarray([-1e-3, 1e-3]) / np.sqrt(1e-6 + 1e-6) * [1, 2] + [0, 0.5]
    np.testing.assert_allclose(norm(jnp.asarray([[-1e-3, 1e-3]]))[0], expected, rtol=1e-4)


def test_sinusoid_by_hand():
    # Width 6: three frequencies 1, 10000^(-1/2) and 10000^(-1).
    angles = 500 * np.asarray([1.0, 0.01, 0.0001])
    expected = [*np.sin(angles), *np.cos(angles)]
    np.testing.assert_allclose(sinusoid(jnp.asarray(500.0), 6), expected, atol=1e-4)


def test_sizes_are_those_of_the_paper():
    table = {"S": (384, 12, 6, 4), "B": (768, 12, 12, 4), "L": (1024, 24, 16, 8), "Ti": (192, 12, 3, 4)}
    for name, (width, depth, heads, decoder_depth) in table.items():
        encoder, decoder, patch = ModelConfig(f"{name}/16").sizes()
        assert (encoder, decoder, patch) == ((width, depth, heads), (width, decoder_depth, heads), 16)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_builds(name):
    config = ModelConfig(f"{name}/2")
    model = eqx.filter_eval_shape(lambda key: config.build(8, 1, 5, key=key), jax.random.key(0))
    encoder, decoder = VARIANTS[name]
    assert model.encoder.blocks.norm1.scale.shape == (encoder.depth, encoder.width)
    assert model.decoder.blocks.norm1.scale.shape == (decoder.depth, decoder.width)
    assert (model.num_patches, model.patch, model.image_shape) == (16, 2, (8, 8, 1))


@pytest.mark.parametrize("variant", ["B", "B/", "/4", "b/4", "Q/4", "B/0", "B/-4", "B/04", "B/4 ", "B/4/4", "B4", ""])
def test_a_name_that_is_no_variant_is_refused(variant):
    with pytest.raises(BadInput, match=r"model\.variant: .* is not a variant.*B/4") as refusal:
        ModelConfig(variant).sizes()
    assert refusal.value.field == "model.variant"


def test_a_patch_that_does_not_divide_the_image_is_refused_with_those_that_do():
    expected = r"a patch size of 5 does not divide an image of 12 x 12 pixels.*1, 2, 3, 4, 6, 12"
    with pytest.raises(BadInput, match=expected):
        ModelConfig("mu/5").build(12, 3, 5, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("field", "values"),
    [("model.class_tokens", {"class_tokens": 0}), ("model.class_token_std", {"class_token_std": -0.1})],
)
def test_class_tokens_that_cannot_be_are_refused(field, values):
    with pytest.raises(BadInput, match=field):
        ModelConfig("mu/4", **values).validate(8)


def test_blocks_of_a_stack_start_different():
    init = eqx.filter_vmap(lambda key: Block.init(16, 2, BlockConfig(), key=key))
    stack = jax.jit(lambda key: init(jax.random.split(key, 2)))
    kernels = stack(jax.random.key(0)).attention.qkv.kernel
    assert not np.allclose(kernels[0], kernels[1])
    # Queries, keys and values are not copies of one another either.
    assert not np.allclose(kernels[0, :, :16], kernels[0, :, 16:32])
