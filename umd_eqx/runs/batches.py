"""The training batches of a run: images, or latents that are stored or encoded on the fly."""

from collections.abc import Generator

import jax
from jax.sharding import Mesh

from umd_eqx.core.sharding import batch_sharding
from umd_eqx.core.types import Batch
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.loader import training_batches
from umd_eqx.latents.store import ChooseView, LatentSource
from umd_eqx.latents.stream import as_latents
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.runs.resolved import Resolved

LATENT_KEY = 2**32 - 2
"""Folded into the seed to draw latents from a tokenizer's posterior. No training step has this number."""


def run_batches(
    resolved: Resolved, tokenizer: AbstractTokenizer | None, mesh: Mesh, first: int
) -> Generator[Batch, None, None]:
    """Yields the training batches from step `first` on; `close()` stops the prefetching threads.

    **Arguments:**

    - `resolved`: the resolved configuration.
    - `tokenizer`: the tokenizer of `resolved`, placed on the devices; None for a network trained on pixels.
    - `mesh`: the devices over which each batch is sharded.

    **Raises:** `BadInput` if the data cannot be read.
    """
    config, data = resolved.config, resolved.config.data
    stored = data.latents
    if stored is None:
        source, transform = resolved.data.splits[0], data.transform()
    else:
        latents = LatentSource(stored, manifest=resolved.stored)
        source, transform = SkipBroken(latents, data.max_broken, split=stored), ChooseView()
    batches = training_batches(
        source,
        transform,
        batch_size=data.batch_size,
        seed=config.seed,
        start_step=first,
        sharding=batch_sharding(mesh),
        threads=data.workers,
        processes=data.workers if data.worker_kind == "processes" else 0,
    )
    if tokenizer is None:
        return batches
    key = jax.random.fold_in(jax.random.key(config.seed), LATENT_KEY)
    return as_latents(batches, tokenizer, key, first, mesh=mesh, stored=stored is not None)
