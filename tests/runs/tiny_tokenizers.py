"""Small tokenizers, and the files that a run leaves of one."""

import jax
import pytest

from umd_eqx.models.tokenizers.base import with_statistics
from umd_eqx.models.tokenizers.configs import FSQTokenizer, KLTokenizer
from umd_eqx.models.tokenizers.vae import VAEConfig
from umd_eqx.runs.tokenizers import save_tokenizer

KL = KLTokenizer(latent_channels=2, widths=(4, 8), groups=2)
FSQ = FSQTokenizer(levels=(3, 4), widths=(4, 4), groups=2)
DIFFUSERS = VAEConfig(channels=1, latent_channels=3, widths=(4, 8), layers=1, groups=2, shift=0.5, scale=2.0)


def made(config):
    return config.build(28, 1, 10, key=jax.random.key(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small KL tokenizer, as a run of train_tokenizer.py leaves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(with_statistics(made(KL), 0.25, 3.0), KL, folder / "tokenizer.safetensors", {"step": 7})
    return folder
