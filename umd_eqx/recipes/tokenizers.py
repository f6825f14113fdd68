"""The recipes for training a tokenizer. Its weights and its card on the disk: `umd_eqx.models.tokenizers.files`."""

from umd_eqx.core.paths import Clean
from umd_eqx.eval.tokenizer_quality import TokenizerQuality
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.tokenizers.configs import FSQTokenizer, KLTokenizer
from umd_eqx.objectives import Tokenizing
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.recipes.pretrain import FASHION_MNIST, Preset
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.optimisers import AdamW


def kl() -> Config:
    """A small KL autoencoder for the shipped images: Gaussian latents of 7 x 7 x 4."""
    return _small(KLTokenizer(), Tokenizing())


def fsq() -> Config:
    """A small FSQ tokenizer for the shipped images: 7 x 7 codes from a codebook of 1,000."""
    return _small(FSQTokenizer(), Tokenizing(kl_weight=0.0))


TOKENIZERS: dict[str, Preset] = {"kl": kl, "fsq": fsq}
"""The presets of `experiments/train_tokenizer.py`; the first is its default."""


def _small(model: AbstractModelConfig, objective: Tokenizing) -> Config:
    steps = 2500
    return Config(
        model=model,
        objective=objective,
        path=Clean(),
        data=DataConfig(area_min=100.0, flip=True, batch_size=64, expected=FASHION_MNIST),
        optim=AdamW(lr=2e-3, lr_batch_size=None, steps=steps, warmup=0.05, beta2=0.99, weight_decay=0.0),
        ema=EmaConfig(rate=5e-3, batch_size=None),
        eval={"tokenizer": TokenizerQuality(every=steps // 4)},
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=50),
    )
