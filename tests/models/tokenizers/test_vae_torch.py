"""The Stable Diffusion VAE against diffusers', which is another's work, on the same random weights.

Needs `pip install "umd_eqx[parity]"`.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.models.tokenizers.diffusers_vae import CONFIG, read_diffusers, write_diffusers
from umd_eqx.models.tokenizers.vae import SD_V1, SD_V3, AutoencoderKL, VAEConfig

WHY = 'parity with PyTorch: pip install "umd_eqx[parity]"'
torch = pytest.importorskip("torch", reason=WHY)
if importlib.util.find_spec("diffusers") is None:
    pytest.skip(WHY, allow_module_level=True)

os.environ["HF_HUB_OFFLINE"] = "1"
# It has no part in this, and beside another build of torch it fails to import: so it is not to be found.
sys.modules.setdefault("torchvision", None)  # pyright: ignore[reportArgumentType]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Theirs

SMALL = VAEConfig(widths=(8, 16, 16), layers=1, groups=4)
SMALL_16 = dataclasses.replace(SD_V3, widths=(8, 16), layers=2, groups=8)
GREY = VAEConfig(channels=1, latent_channels=3, widths=(8, 16), layers=1, groups=2, attention=False)

SIZES = [
    pytest.param(SMALL, 16, id="small"),
    pytest.param(SMALL_16, 16, id="small, 16 channels"),
    pytest.param(GREY, 12, id="grey, no attention"),
    pytest.param(SD_V1, 64, id="as published"),
]


def theirs(config: VAEConfig):
    """diffusers' network, its weights random but for norms that would leave half of it silent."""
    torch.manual_seed(0)
    network = Theirs(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * len(config.widths),
        up_block_types=("UpDecoderBlock2D",) * len(config.widths),
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        scaling_factor=config.scale,
        shift_factor=config.shift or None,
        use_quant_conv=config.quant_conv,
        use_post_quant_conv=config.post_quant_conv,
        mid_block_add_attention=config.attention,
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
    return network.eval()


def channels_first(image: np.ndarray):
    """One image as a batch of theirs."""
    return torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))


def close(ours: jax.Array, expected) -> None:
    """To 1e-4 of the largest value."""
    there = expected.detach().numpy()[0].transpose(1, 2, 0)
    assert ours.shape == there.shape
    assert float(np.abs(np.asarray(ours) - there).max()) < 1e-4 * float(np.abs(there).max())


@pytest.mark.parametrize(("config", "side"), SIZES)
def test_a_file_of_theirs_loads_here_and_says_the_same(config, side, tmp_path):
    network = theirs(config)
    network.save_pretrained(tmp_path)
    tokenizer = read_diffusers(tmp_path)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (side, side, config.channels)).astype(np.float32)
    with torch.no_grad():
        expected = network.encode(channels_first(image)).latent_dist
    posterior = eqx.filter_jit(lambda t, x: t.encode_raw(x))(tokenizer, jnp.asarray(image))
    close(posterior.mean, expected.mean)
    close(posterior.logvar, expected.logvar)
    z = rng.normal(size=posterior.mean.shape).astype(np.float32)
    with torch.no_grad():
        expected = network.decode(channels_first(z)).sample
    close(eqx.filter_jit(lambda t, z: t.decode_raw(z))(tokenizer, jnp.asarray(z)), expected)
    assert (tokenizer.shift, tokenizer.scale) == (config.shift, pytest.approx(config.scale))


def test_what_a_configuration_leaves_out_is_what_they_take_it_for(tmp_path):
    theirs(dataclasses.replace(SMALL, scale=0.5)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    for name in ("scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        del content[name]
    (tmp_path / CONFIG).write_text(json.dumps(content))
    network = Theirs.from_pretrained(tmp_path, local_files_only=True)
    assert read_diffusers(tmp_path).scale == network.config.scaling_factor == 0.18215


@pytest.mark.parametrize("config", [SMALL, SMALL_16, GREY])
def test_a_file_of_ours_loads_there_and_says_the_same(config, tmp_path):
    tokenizer = AutoencoderKL.init(config, key=jax.random.key(0))
    write_diffusers(tokenizer, config, tmp_path)
    network = Theirs.from_pretrained(tmp_path, local_files_only=True).eval()
    image = np.random.default_rng(0).uniform(-1, 1, (16, 16, config.channels)).astype(np.float32)
    with torch.no_grad():
        latent = network.encode(channels_first(image)).latent_dist
        back = network.decode(latent.mean).sample
    posterior = tokenizer.encode_raw(jnp.asarray(image))
    close(posterior.mean, latent.mean)
    close(posterior.logvar, latent.logvar)
    close(tokenizer.decode_raw(posterior.mean), back)
    assert network.config.scaling_factor == pytest.approx(config.scale)
