"""The recipes of fine-tuning a pre-trained network into a classifier."""

import dataclasses

from umd_eqx.models import ModelConfig
from umd_eqx.models.vit.classifiers import ViTClassifierConfig
from umd_eqx.objectives import Classification
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.recipes.supervised import s4_in64, supervised_fashion
from umd_eqx.training.optim import UNCLIPPED
from umd_eqx.training.optimisers import AdamW


def finetune_classifier() -> Config:
    """MAE's fine-tuning of ViT-B for 100 epochs (arXiv 2111.06377, table 9, and its code), at the size of the run.

    As there: the mean of the patches and a linear head with weights of N(0, 2e-5^2), layer-wise learning rates with a
    decay of 0.65, 5e-4 for 256 images, weight decay 0.05, 5 epochs of warm-up, batch size 1024, mixup 0.8, CutMix 1.0,
    label smoothing 0.1, stochastic depth 0.1, no clipping, crops of at least 8 % of an image. For L: `--optim.epochs 50
    --optim.lr 1e-3 --optim.layer-decay 0.75`.

    What differs:

    - There are no RandAugment and no random erasing, and crops are resized bilinearly.
    - The last LayerNorm is that of the pre-trained encoder, before the mean over patches, instead of a new one after
      it.
    - Weight decay also applies to position embeddings and to scales of normalisations.
    - An image is mixed with its neighbour, by mixup or by CutMix, with a share of its own; in MAE's code the whole
      batch is mixed in one way with one share.
    - The learning rate ends at 0 instead of 1e-6.
    """
    config = s4_in64()
    network = ModelConfig(variant="B/4", class_token_std=0.0)
    return dataclasses.replace(
        config,
        model=ViTClassifierConfig(network=network, features="patches", head_std=2e-5, drop_path=0.1),
        objective=Classification(label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        data=dataclasses.replace(config.data, area_min=8.0),
        optim=AdamW(
            lr=5e-4,
            epochs=100.0,
            warmup=0.05,
            beta2=0.999,
            weight_decay=0.05,
            clip=UNCLIPPED,
            layer_decay=0.65,
        ),
    )


def fashion_finetune_classifier() -> Config:
    """A network on the shipped images, fine-tuned into a classifier in a few minutes."""
    config = supervised_fashion()
    # Four layers are too few for the published decay, and 2,000 steps for so much augmentation.
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, features="both", head_std=2e-5, drop_path=0.05),
        objective=Classification(mixup=0.2),
        optim=dataclasses.replace(config.optim, weight_decay=0.05, layer_decay=0.75),
    )


FINETUNE_CLASSIFIER: dict[str, Preset] = {
    "finetune-classifier": finetune_classifier,
    "finetune-classifier-fashion": fashion_finetune_classifier,
}
"""The presets of `experiments/finetune_classifier.py`. Without a preset, the data of the run select one."""
