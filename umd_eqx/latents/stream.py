"""Conversion of batches of images, or of stored posteriors, to batches of the latents that a network is trained on."""

from collections.abc import Generator

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.sharding import chunked_vmap
from umd_eqx.core.types import Batch
from umd_eqx.models.tokenizers.base import AbstractTokenizer, Posterior


def as_latents(
    batches: Generator[Batch, None, None],
    tokenizer: AbstractTokenizer,
    key: PRNGKeyArray,
    first: int,
    *,
    mesh: Mesh,
    stored: bool,
) -> Generator[Batch, None, None]:
    """Yields a batch of latents for each input batch; `close()` also closes `batches`.

    **Arguments:**

    - `batches`: batches of images or, if `stored`, of the moments in `umd_eqx.latents.store`.
    - `tokenizer`: encodes the images. For stored latents only its shift, scale and channels are used.
    - `key`, `first`: batch k is sampled with `fold_in(key, first + k)`; a run resumed at a step has the same latents.
    - `mesh`: the devices that share each batch.
    - `stored`: whether the batches hold stored moments.
    """
    try:
        for step, batch in enumerate(batches, start=first):
            number = jnp.asarray(step)  # an argument of the compiled program; an int would be a constant in it
            if stored:
                yield draw_stored(tokenizer, batch, key, number)
            else:
                yield encode_batch(tokenizer, batch, key, number, mesh)
    finally:
        batches.close()


@eqx.filter_jit
def encode_batch(tokenizer: AbstractTokenizer, batch: Batch, key: PRNGKeyArray, step: Array, mesh: Mesh) -> Batch:
    """Encodes the images of a batch, in chunks that fit into device memory, and samples their latents."""
    return _drawn(chunked_vmap(tokenizer.encode, jnp.asarray(batch.image), mesh), batch, key, step)


@eqx.filter_jit
def draw_stored(tokenizer: AbstractTokenizer, batch: Batch, key: PRNGKeyArray, step: Array) -> Batch:
    """Samples the latents of a batch from the stored mean and log-variance of z, or uses the mean alone."""
    z = jax.vmap(lambda moments: split_moments(moments, tokenizer.latent_channels))(jnp.asarray(batch.image))
    return _drawn(jax.vmap(lambda p: p.standardised(tokenizer.shift, tokenizer.scale))(z), batch, key, step)


def split_moments(moments: Float[Array, "h w stored"], channels: int) -> Posterior:
    """Splits stored moments into the mean and, if present, the log-variance of a latent with `channels` channels."""
    if moments.shape[-1] == channels:
        return Posterior(moments)
    return Posterior(moments[..., :channels], moments[..., channels:])


def join_moments(posterior: Posterior, *, mode_only: bool) -> Float[Array, "h w stored"]:
    """The inverse of `split_moments`. For a point mass, or with `mode_only`, only the mean is stored."""
    if mode_only or posterior.logvar is None:
        return posterior.mean
    return jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)


def _drawn(posterior: Posterior, batch: Batch, key: PRNGKeyArray, step: Array) -> Batch:
    keys = jax.random.split(jax.random.fold_in(key, step), len(batch.image))
    return Batch(jax.vmap(lambda p, k: p.sample(k))(posterior, keys), batch.label, batch.valid)
