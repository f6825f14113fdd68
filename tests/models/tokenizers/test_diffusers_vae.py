"""Files of diffusers' AutoencoderKL, read and written without it; and what is refused."""

import dataclasses
import json
import pickle
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.models.tokenizers.diffusers_vae import CONFIG, WEIGHTS, is_diffusers, read_diffusers, write_diffusers
from umd_eqx.models.tokenizers.vae import SD_V1, AutoencoderKL, VAEConfig

MU = VAEConfig(channels=1, latent_channels=2, widths=(4, 8), layers=1, groups=2, shift=0.25, scale=1.5)
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoencoderKL.init(MU, key=jax.random.key(0))


@pytest.fixture
def folder(tokenizer, tmp_path) -> Path:
    write_diffusers(tokenizer, MU, tmp_path / "vae")
    return tmp_path / "vae"


def same(ours: AutoencoderKL, theirs: AutoencoderKL, **tolerance) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


def rewrite(folder: Path, change) -> None:
    tensors, texts = read_tensors(folder / WEIGHTS)
    write_tensors(folder / WEIGHTS, change(tensors), texts)


def configure(folder: Path, **options) -> None:
    content = json.loads((folder / CONFIG).read_text()) | options
    (folder / CONFIG).write_text(json.dumps(content))


def test_what_was_written_is_read_wherever_it_lies(tokenizer, folder):
    for place in (folder, folder.parent, folder / WEIGHTS):
        assert is_diffusers(place)
        same(read_diffusers(place), tokenizer, rtol=0)


def test_the_names_are_those_of_the_published_files():
    # A few of each kind; test_vae_torch.py has them all.
    like = jax.eval_shape(lambda key: AutoencoderKL.init(SD_V1, key=key), jax.random.key(0))
    from umd_eqx.models.tokenizers.diffusers_vae import _diffusers_name

    names = {_diffusers_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    assert len(names) == 248
    assert {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        "encoder.down_blocks.2.downsamplers.0.conv.bias",
        "encoder.mid_block.attentions.0.to_out.0.weight",
        "decoder.mid_block.attentions.0.group_norm.weight",
        "decoder.up_blocks.3.resnets.2.norm2.bias",
        "decoder.up_blocks.0.upsamplers.0.conv.weight",
        "decoder.conv_norm_out.weight",
        "encoder.conv_in.weight",
        "post_quant_conv.bias",
    } <= names.keys()


def test_old_names_and_convolutions_in_the_attention_are_understood(tokenizer, folder):
    def aged(tensors):
        found = {}
        for name, tensor in tensors.items():
            for new, old in OLD.items():
                if f".{new}." in name:
                    name = name.replace(f".{new}.", f".{old}.")
                    tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
            found[name] = tensor
        return found

    rewrite(folder, aged)
    assert any("proj_attn" in name for name in read_tensors(folder / WEIGHTS)[0])
    same(read_diffusers(folder), tokenizer, rtol=0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_single(tokenizer, folder, dtype):
    rewrite(folder, lambda tensors: {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    again = read_diffusers(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype("float32")}
    same(again, tokenizer, atol=0.01)


def test_a_scale_of_null_is_one(folder):
    configure(folder, scaling_factor=None, shift_factor=None)
    assert (read_diffusers(folder).scale, read_diffusers(folder).shift) == (1.0, 0.0)


def test_a_scale_that_is_not_given_is_that_of_stable_diffusion(folder):
    # As in files older than the option, which was in diffusers' pipelines before.
    content = json.loads((folder / CONFIG).read_text())
    del content["scaling_factor"], content["shift_factor"]
    (folder / CONFIG).write_text(json.dumps(content))
    assert (read_diffusers(folder).scale, read_diffusers(folder).shift) == (0.18215, 0.0)


def renamed(tensors):
    return {name.replace("conv_in", "conv_out_in"): tensor for name, tensor in tensors.items()}


def lacking(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "quant_conv.bias"}


def transposed(tensors):
    return tensors | {"quant_conv.weight": tensors["quant_conv.weight"][:2]}


def broken(tensors):
    return tensors | {"quant_conv.bias": np.full_like(tensors["quant_conv.bias"], np.nan)}


def infinite(tensors):
    return tensors | {"quant_conv.bias": np.full(4, 1e300)}


def quantised(tensors):
    return tensors | {"quant_conv.bias": np.zeros(4, np.int8)}


def twice(tensors):
    return tensors | {name.replace("to_q", "query"): tensor for name, tensor in tensors.items() if "to_q" in name}


def obeyed(tensors):
    return tensors | {"a\nb\x1b[31m" + "c" * 1000: np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (infinite, "quant_conv.bias in .* holds values that are not finite"),
        (quantised, "quant_conv.bias in .* has dtype int8"),
        (twice, "under both their old and their new names"),
        (obeyed, "a b .31mc+ in .* is not part of the network"),
        (renamed, "decoder.conv_out_in.bias in .* is not part of the network"),
        (lacking, "lacks quant_conv.bias"),
        (transposed, "quant_conv.weight in .* has shape .2, 4, 1, 1., which is not that of the network"),
        (broken, "quant_conv.bias in .* holds values that are not finite"),
    ],
)
def test_arrays_that_do_not_fit(folder, change, message):
    rewrite(folder, change)
    refused(folder, message)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refusal:
        read_diffusers(folder)
    assert refusal.value.field == "tokenizer"
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "VQModel"}, "describes a 'VQModel', not an AutoencoderKL"),
        ({"_class_name": "V" * 1000}, "describes a 'V{80}', not"),
        ({"act_fn": "gelu"}, "has act_fn = gelu, and only silu is supported"),
        ({"act_fn": "a\nb\x1b[31m"}, "has act_fn = a b .31m, and"),
        ({"latents_mean": [1.0, 2.0]}, "has latents_mean = .1.0, 2.0., and only None is supported"),
        ({"latents_std": [1.0, 2.0]}, "has latents_std"),
        ({"down_block_types": ["AttnDownBlock2D"]}, "has down_block_types"),
        ({"out_channels": 3}, "different numbers of input and output channels"),
        ({"block_out_channels": [4, 9]}, "has 2 groups, which do not divide the widths .4, 9."),
        ({"block_out_channels": "many"}, "does not describe a network"),
        ({"layers_per_block": 10**9}, "does not describe a network"),
        ({"layers_per_block": 65}, "does not describe a network"),
        ({"latent_channels": True}, "does not describe a network"),
        ({"scaling_factor": "nan"}, "does not describe a network"),
        ({"scaling_factor": -1}, "does not describe a network"),
        ({"scaling_factor": 0}, "does not describe a network"),
        ({"scaling_factor": 10**400}, "does not describe a network"),
        ({"use_quant_conv": 1}, "does not describe a network"),
    ],
)
def test_configurations_that_cannot_be_built(folder, options, message):
    configure(folder, **options)
    refused(folder, message)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_configurations_that_are_none(folder, content):
    (folder / CONFIG).write_text(content)
    assert not is_diffusers(folder)
    refused(folder, "does not describe a network|describes a None")


def test_files_that_are_missing_or_hostile(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps({"quant_conv.bias": np.zeros(4)}))
    refused(folder, "is not a readable safetensors file .*nothing in this file was executed")
    (folder / WEIGHTS).unlink()
    refused(folder, "there is no file")
    (folder / CONFIG).unlink()
    assert not is_diffusers(folder)
    refused(folder, "cannot be read")


def test_the_sizes_of_a_file_are_read(folder):
    configure(folder, use_post_quant_conv=False, mid_block_add_attention=False)
    rewrite(
        folder,
        lambda tensors: {n: t for n, t in tensors.items() if "post_quant" not in n and "attentions" not in n},
    )
    again = read_diffusers(folder)
    assert again.post_quant_conv is None
    assert again.encoder.middle.attention is None
    assert dataclasses.asdict(MU)["scale"] == again.scale
