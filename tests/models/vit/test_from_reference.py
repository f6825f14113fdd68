"""Published weights of any size: the shapes are all that `from_reference` is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import patchify
from umd_eqx.models import ModelConfig, from_reference
from umd_eqx.models.vit.autoencoder import AutoEncoder
from umd_eqx.models.vit.packed import Packed, Segment

# Nothing here is as in the golden files: width, depths, heads, patch, channels, classes, number of class tokens.
WIDTH, ENCODER, DECODER, HEADS, PATCH, CHANNELS, SIDE, CLASSES, TOKENS = 24, 3, 2, 3, 2, 1, 6, 7, 5
SCANNED = "ScanCheckpointEncoder1DBlock_0"


def parameters(*, adaln: bool, scanned: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters by the reference's names."""
    rng, d, n = np.random.default_rng(seed), WIDTH, (SIDE // PATCH) ** 2
    head_dim = d // HEADS
    shapes = {
        "cls": (1, TOKENS, d),
        "pos_embedding": (1, n, d),
        "dec_pos_embedding": (1, n, d),
        "image_mask_embedding": (1, 1, d),
        "embedding/kernel": (PATCH, PATCH, CHANNELS, d),
        "embedding/bias": (d,),
        "label_emb/embedding/embedding": (CLASSES + 1, d),
        "final_conv/kernel": (PATCH, PATCH, d, 2 * CHANNELS),
        "final_conv/bias": (2 * CHANNELS,),
    }
    for trunk in ("time_trunk", "label_trunk"):
        shapes |= {f"{trunk}/Dense_0/kernel": (d, 2 * d), f"{trunk}/Dense_0/bias": (2 * d,)}
        shapes |= {f"{trunk}/Dense_1/kernel": (2 * d, d), f"{trunk}/Dense_1/bias": (d,)}
    if adaln:
        shapes |= {"final_modulation/kernel": (d, 2 * d), "final_modulation/bias": (2 * d,)}
    block = {
        "LayerNorm_0/scale": (d,),
        "LayerNorm_0/bias": (d,),
        "LayerNorm_1/scale": (d,),
        "LayerNorm_1/bias": (d,),
        "MultiHeadDotProductAttention_0/out/kernel": (HEADS, head_dim, d),
        "MultiHeadDotProductAttention_0/out/bias": (d,),
        "MlpBlock_0/Dense_0/kernel": (d, 4 * d),
        "MlpBlock_0/Dense_0/bias": (4 * d,),
        "MlpBlock_0/Dense_1/kernel": (4 * d, d),
        "MlpBlock_0/Dense_1/bias": (d,),
    }
    for part in ("query", "key", "value"):
        block |= {f"MultiHeadDotProductAttention_0/{part}/kernel": (d, HEADS, head_dim)}
        block |= {f"MultiHeadDotProductAttention_0/{part}/bias": (HEADS, head_dim)}
    if adaln:
        block |= {"Dense_0/kernel": (d, 6 * d), "Dense_0/bias": (6 * d,)}
    for stack, depth in (("Encoder", ENCODER), ("Decoder", DECODER)):
        shapes |= {f"{stack}/encoder_norm/scale": (d,), f"{stack}/encoder_norm/bias": (d,)}
        shapes |= {f"{stack}/{SCANNED}/{name}": (depth, *shape) for name, shape in block.items()}
    values = {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    return values if scanned else unscanned(values)


def unscanned(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same parameters with a name for each block."""
    apart = {name: value for name, value in values.items() if SCANNED not in name}
    for name, value in values.items():
        if SCANNED in name:
            apart |= {name.replace(SCANNED, f"Encoder1DBlock_{i}"): layer for i, layer in enumerate(value)}
    return apart


@pytest.fixture(scope="module")
def params():
    return parameters(adaln=True)


@pytest.fixture(scope="module")
def model(params) -> AutoEncoder:
    return from_reference(params)


@pytest.mark.parametrize("adaln", [True, False])
def test_the_shapes_tell_the_network(adaln):
    model = from_reference(parameters(adaln=adaln), dtype="bfloat16", remat="full", scan=False)
    assert (model.image_shape, model.patch, model.num_classes, model.num_patches) == ((6, 6, 1), 2, 7, 9)
    assert (model.encoder.blocks.norm1.scale.shape, model.decoder.blocks.norm1.scale.shape) == ((3, 24), (2, 24))
    assert (model.encoder.blocks.attention.heads, model.class_tokens.shape) == (3, (5, 24))
    assert (model.dtype, model.encoder.remat, model.decoder.scan) == ("bfloat16", "full", False)
    # Leaf by leaf as a network of our own is, but for its size.
    config = ModelConfig("mu/2", conditioning="adaln" if adaln else "token", labels=True)
    ours = jax.eval_shape(lambda key: config.build(6, 1, 7, key=key), jax.random.key(0))
    paths = [[path for path, _ in jax.tree_util.tree_leaves_with_path(tree)] for tree in (model, ours)]
    assert paths[0] == paths[1]


@pytest.mark.parametrize("adaln", [True, False])
def test_scanned_and_separate_blocks_are_the_same_network(adaln):
    scanned = parameters(adaln=adaln, scanned=True)
    one, other = from_reference(scanned), from_reference(unscanned(scanned))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_parameter_has_a_place(params, model):
    assert sum(value.size for value in params.values()) == sum(leaf.size for leaf in jax.tree.leaves(model))


def test_the_label_table_can_be_left_out(params):
    model = from_reference(params, labels=False)
    assert model.num_classes is None
    assert model.condition.label is None
    trunk_of_time = {name: value for name, value in params.items() if not name.startswith("label_")}
    assert from_reference(trunk_of_time).num_classes is None


def test_patches_are_embedded_as_the_reference_convolves(params, model):
    image = np.random.default_rng(1).normal(size=(SIDE, SIDE, CHANNELS)).astype(np.float32)
    tokens = np.asarray(model.embed(patchify(jnp.asarray(image), PATCH))).reshape(3, 3, WIDTH)
    for i, j in ((0, 0), (1, 2), (2, 1)):
        window = image[PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)]
        expected = np.einsum("abc,abcd->d", window, params["embedding/kernel"]) + params["embedding/bias"]
        np.testing.assert_allclose(tokens[i, j], expected, atol=1e-5)


def test_the_head_is_the_references_flipped_transposed_convolution(params, model):
    kernel = np.asarray(model.head.kernel).reshape(WIDTH, PATCH, PATCH, 2 * CHANNELS)
    for a in range(PATCH):
        for b in range(PATCH):
            flipped = params["final_conv/kernel"][PATCH - 1 - a, PATCH - 1 - b]
            np.testing.assert_array_equal(kernel[:, a, b], flipped)


def test_attention_has_the_references_heads(params, model):
    x = np.random.default_rng(1).normal(size=(4, WIDTH)).astype(np.float32)
    block = jax.tree.map(lambda leaf: leaf[1], model.encoder.blocks)
    prefix = "Encoder/Encoder1DBlock_1/MultiHeadDotProductAttention_0"

    def project(part: str) -> np.ndarray:
        kernel, bias = params[f"{prefix}/{part}/kernel"], params[f"{prefix}/{part}/bias"]
        return np.einsum("nd,dhk->nhk", x, kernel) + bias

    q, k, v = map(project, ("query", "key", "value"))
    logits = np.einsum("nhk,mhk->hnm", q, k) / (WIDTH // HEADS) ** 0.5
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mixed = np.einsum("hnm,mhk->nhk", weights, v)
    expected = np.einsum("nhk,hkd->nd", mixed, params[f"{prefix}/out/kernel"]) + params[f"{prefix}/out/bias"]
    packed = Packed(jnp.asarray(x)[None], jnp.zeros((1, 4, 2)), (Segment(1, 4),))
    np.testing.assert_allclose(block.attention(packed)[0], expected, atol=1e-4)


MISSING = [
    "cls",
    "pos_embedding",
    "image_mask_embedding",
    "embedding/kernel",
    "time_trunk/Dense_1/bias",
    "label_trunk/Dense_0/kernel",
    "final_conv/bias",
    "final_modulation/bias",
    "Encoder/encoder_norm/scale",
    "Encoder/Encoder1DBlock_1/Dense_0/kernel",
    "Encoder/Encoder1DBlock_2/MlpBlock_0/Dense_1/bias",
    "Decoder/Encoder1DBlock_0/MultiHeadDotProductAttention_0/key/bias",
    "Decoder/Encoder1DBlock_1/LayerNorm_1/scale",
]


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_parameter_is_named(params, name):
    rest = {other: value for other, value in params.items() if other != name}
    assert len(rest) == len(params) - 1
    with pytest.raises(BadInput, match="the parameter is missing") as refusal:
        from_reference(rest)
    assert refusal.value.field == name


def test_an_array_of_another_rank_is_named(params):
    with pytest.raises(BadInput, match=r"embedding/bias: the parameter has shape \(1, 24\)") as refusal:
        from_reference(params | {"embedding/bias": params["embedding/bias"][None]})
    assert refusal.value.field == "embedding/bias"


def test_an_array_of_another_length_is_named(params):
    # All but those whose every length is free: the rest of the file is measured by them.
    free = {"cls": -1, "label_emb/embedding/embedding": -1, "pos_embedding": -1, "embedding/kernel": 0}
    for name, value in params.items():
        axis = free.get(name, 0)
        longer = np.concatenate([value, np.take(value, [0], axis=axis)], axis=axis)
        with pytest.raises(BadInput) as refusal:
            from_reference(params | {name: longer})
        # A kernel whose outputs are free is believed, and its bias or the next layer is what does not fit.
        assert refusal.value.field.split("/")[0] == name.split("/")[0], name


def test_patches_that_are_no_square_are_refused(params):
    with pytest.raises(BadInput, match="pos_embedding: 8 patches do not form a square grid"):
        from_reference(params | {"pos_embedding": params["pos_embedding"][:, :8]})
