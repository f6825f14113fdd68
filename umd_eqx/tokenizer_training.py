"""Training a tokenizer: the recipes, and what is made of a run when it is over."""

import math
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from umd_eqx.config import CheckpointConfig, Config, DataConfig, LogConfig, build
from umd_eqx.data.loader import evaluation_batches
from umd_eqx.data.source import DataSource
from umd_eqx.data.transforms import EvalTransform
from umd_eqx.errors import BadInput
from umd_eqx.eval.base import spread
from umd_eqx.eval.tokenizer_quality import TokenizerQuality
from umd_eqx.models.tokenizer import AbstractTokenizer
from umd_eqx.models.tokenizer_configs import FSQTokenizer, KLTokenizer
from umd_eqx.models.variants import AbstractModelConfig
from umd_eqx.objectives import Tokenizing
from umd_eqx.optim import EmaConfig
from umd_eqx.optimisers import AdamW
from umd_eqx.paths import Clean
from umd_eqx.presets import FASHION_MNIST, Preset
from umd_eqx.pretrained import restored
from umd_eqx.programs import Program
from umd_eqx.sharding import batch_sharding, in_pieces, make_mesh, place, replicated, whole_batch
from umd_eqx.tokenizers import TRAINED, load_tokenizer, save_tokenizer, with_statistics

MEASURED = 10_000
"""Training images by which the latents' mean and standard deviation are taken."""


def kl() -> Config:
    """A small KL auto-encoder of the shipped images: 7 x 7 Gaussian latents of 4 numbers."""
    return _small(KLTokenizer(), Tokenizing())


def fsq() -> Config:
    """A small FSQ tokenizer of the shipped images: 7 x 7 codes out of 1,000."""
    return _small(FSQTokenizer(), Tokenizing(kl_weight=0.0))


TOKENIZERS: dict[str, Preset] = {"kl": kl, "fsq": fsq}
"""The presets of `experiments/train_tokenizer.py`; the first is its default."""


def finish(config: Config, run_dir: Path, *, half: bool = False, say: Callable[[str], None] = print) -> Path:
    """Writes the tokenizer of a run into its directory, with the shift and scale that its latents need.

    The averaged weights where there are such. Of z, drawn for many training images, the mean becomes the shift and 1
    over the standard deviation the scale, so that a network is trained on numbers of mean 0 and variance 1 (Rombach et
    al. 2022, appendix G, who leave the mean as it is). Gives the path of the weights. Raises `BadInput` where the run
    has no checkpoint.
    """
    built = build(config, config.data.describe())
    step, state = restored(built, run_dir, "--run-dir", say)
    tokenizer = state.model if state.ema is None else state.ema
    assert isinstance(tokenizer, AbstractTokenizer)
    train, _ = config.data.open()
    given = {"batch_size": config.data.eval_batch_size, "images": MEASURED, "mesh": built.parts.mesh}
    mean, std = latent_statistics(tokenizer, train, config.data.size, **given)
    tokenizer = with_statistics(tokenizer, mean, 1.0 / std)
    facts = {"step": step, "data": built.spec.name, "size": config.data.size}
    save_tokenizer(tokenizer, config.model, run_dir / TRAINED, facts | {"latent_std": std}, half=half)
    return run_dir / TRAINED


def is_written(run_dir: Path, step: int) -> bool:
    """Whether the tokenizer that a run has at `step` lies in its directory, and can be read."""
    try:
        return load_tokenizer(str(run_dir / TRAINED)).facts.get("step") == step
    except BadInput:
        return False


def latent_statistics(
    tokenizer: AbstractTokenizer,
    source: DataSource,
    size: int,
    *,
    batch_size: int = 256,
    images: int = 10_000,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation of z over all numbers of the latents of `images` images, spread over the source.

    Of z as it is drawn: the variance of the posterior is counted. The deviation is 1 where the latents are all alike.
    The devices of `mesh` (all, if not given) share each batch, whose size is rounded up to a multiple of them.
    """
    mesh = make_mesh() if mesh is None else mesh
    tokenizer, batch_size = place(tokenizer, replicated(mesh)), whole_batch(batch_size, mesh)
    total = np.zeros(2)
    count = 0
    for batch in evaluation_batches(source, EvalTransform(size), batch_size, spread(images, len(source))):
        given = jax.device_put(batch.image, batch_sharding(mesh))
        moments = np.asarray(_moments(tokenizer, given, mesh), np.float64)[np.asarray(batch.valid)]
        total, count = total + moments.sum(axis=0), count + len(moments)
    mean, square = total / max(count, 1)
    std = math.sqrt(max(square - mean**2, 0.0))
    return float(mean), std if std > 1e-6 else 1.0


def statistics_program(tokenizer: AbstractTokenizer, images: jax.ShapeDtypeStruct, mesh: Mesh) -> Program:
    """What `latent_statistics` compiles for a batch, by shapes alone."""
    return Program(_moments, (tokenizer, images, mesh))


@eqx.filter_jit
def _moments(tokenizer: AbstractTokenizer, images: Float[Array, "b h w c"], mesh: Mesh) -> Float[Array, "b 2"]:
    def one(image: Float[Array, "h w c"]) -> Float[Array, "2"]:
        posterior = tokenizer.encode_raw(image)
        variance = 0.0 if posterior.logvar is None else jnp.mean(jnp.exp(posterior.logvar))
        return jnp.stack([jnp.mean(posterior.mean), jnp.mean(posterior.mean**2) + variance])

    return in_pieces(one, images, mesh)


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
