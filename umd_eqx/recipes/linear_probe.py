"""The recipes of linear probes on frozen features, trained on all labelled images."""

from umd_eqx.core.paths import Clean
from umd_eqx.eval import ProbeAccuracy
from umd_eqx.models import ModelConfig
from umd_eqx.models.vit.probes import LinearProbeConfig
from umd_eqx.objectives import LinearProbing
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig
from umd_eqx.recipes.pretrain import FASHION_MNIST, Preset, imagenet64_data
from umd_eqx.training.optim import UNCLIPPED, EmaConfig
from umd_eqx.training.optimisers import LARS
from umd_eqx.training.trainable import Only

HEAD = Only(("head",))


def linear_probe() -> Config:
    """The published linear probe: LARS, 100 epochs, batch size 4096, the class tokens as features, no clipping.

    As in the code of the paper (arXiv 2406.17688).

    The differences from the published code: the trust ratio and the weight decay of LARS apply to the kernel and not to
    the bias, and the moments at evaluation are those of a pass over the training images instead of running averages.
    """
    return Config(
        model=LinearProbeConfig(network=ModelConfig(variant="B/4", class_token_std=0.0)),
        objective=LinearProbing(),
        path=Clean(),
        data=imagenet64_data(area_min=80.0, batch_size=4096),
        optim=LARS(lr=0.1, epochs=100.0, warmup=0.05, weight_decay=5e-5, clip=UNCLIPPED),
        trainable=HEAD,
        ema=EmaConfig(rate=None),
        eval={"probe": ProbeAccuracy(every=10_000)},
    )


def fashion_linear_probe() -> Config:
    """A linear probe on the shipped images, without augmentation, with class tokens and patches as features."""
    steps = 800
    return Config(
        model=LinearProbeConfig(
            network=ModelConfig(variant="nano/4", class_tokens=1, position_std=0.7), features="both"
        ),
        objective=LinearProbing(),
        path=Clean(),
        data=DataConfig(area_min=100.0, flip=False, batch_size=128, expected=FASHION_MNIST),
        # So few steps need a higher rate than the published 31,000: under LARS it limits how far the weights can move.
        optim=LARS(lr=5.0, lr_batch_size=None, steps=steps, warmup=0.05, clip=UNCLIPPED),
        trainable=HEAD,
        ema=EmaConfig(rate=None),
        eval={"probe": ProbeAccuracy(every=steps, train_images=10_000)},
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=50),
    )


LINEAR_PROBES: dict[str, Preset] = {"linear-probe": linear_probe, "linear-probe-fashion": fashion_linear_probe}
"""The presets of `experiments/linear_probe.py`. Without a preset, the data of the run select one."""
