"""The recipes of supervised training from scratch."""

from umd_eqx.core.paths import Clean
from umd_eqx.eval import Accuracy
from umd_eqx.models import ModelConfig
from umd_eqx.models.vit.classifiers import ViTClassifierConfig
from umd_eqx.objectives import Classification
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.recipes.pretrain import FASHION_MNIST, Preset, imagenet64_data
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.optimisers import AdamW


def s4_in64() -> Config:
    """ViT-S/4 on ImageNet at 64 px for 90 epochs: the plain-ViT recipe of arXiv 2205.01580, which is for 224 px.

    As there: global average pooling and a linear head of zeros, mixup 0.2, crops of at least 5 % of an image, Adam at a
    learning rate of 1e-3 for 1024 images with a first moment in bfloat16, clipping at 1. Its weight decay of 1e-4,
    which is independent of the learning rate, is 0.1 here, where the learning rate multiplies it; its warm-up of 10,000
    steps is 8 epochs.

    What differs:

    - Images of 64 px in patches of 4 px, 256 tokens instead of 196.
    - There is no RandAugment.
    - The network is the encoder of this package's auto-encoders: position embeddings are learned instead of fixed
      sinusoids, a class token takes part in attention and is not read, and so does the embedding of time 0 in every
      block.
    - Weight decay also applies to position embeddings and to scales of normalisations, and not only to matrices.
    - Mixup draws a share for each image, mixed with its neighbour, instead of one for the batch.
    """
    return Config(
        model=ViTClassifierConfig(network=ModelConfig(variant="S/4", conditioning="token", class_tokens=1)),
        objective=Classification(mixup=0.2),
        path=Clean(),
        data=imagenet64_data(area_min=5.0, batch_size=1024),
        optim=AdamW(
            lr=1e-3,
            lr_batch_size=1024,
            epochs=90.0,
            warmup=0.09,
            beta2=0.999,
            weight_decay=0.1,
            mu_dtype="bfloat16",
        ),
        ema=EmaConfig(rate=None),
        eval={"accuracy": Accuracy(every=10_000)},
    )


def supervised_fashion() -> Config:
    """A small ViT on the shipped images."""
    steps = 2000
    network = ModelConfig(variant="nano/4", conditioning="token", class_tokens=1, position_std=0.7)
    return Config(
        model=ViTClassifierConfig(network=network),
        objective=Classification(mixup=0.2),
        path=Clean(),
        data=DataConfig(area_min=80.0, flip=True, batch_size=32, expected=FASHION_MNIST),
        optim=AdamW(lr=1e-3, lr_batch_size=None, steps=steps, warmup=0.1, beta2=0.999, weight_decay=0.1),
        ema=EmaConfig(rate=None),
        eval={"accuracy": Accuracy(every=steps // 4, images=5000)},
        checkpoint=CheckpointConfig(every=400),
        log=LogConfig(every=50),
    )


SUPERVISED: dict[str, Preset] = {"fashion": supervised_fashion, "s4-in64": s4_in64}
"""The presets of `experiments/supervised.py`; the first is its default."""
