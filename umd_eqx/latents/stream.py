"""From batches of images, or of what a tokenizer said of them once, to the latents that a network is trained on."""

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
    """Batches of latents, one for each batch; `close()` closes those, too.

    **Arguments:**

    - `batches`: of images or, where `stored`, of what `umd_eqx.latents.store` holds of them.
    - `tokenizer`: encodes the images; of stored latents only its shift, scale and channels are used.
    - `mesh`: the devices that share each batch.
    - `key`, `first`: batch k is drawn by `fold_in(key, first + k)`, so that resuming at a step gives the same latents.
    """
    try:
        for step, batch in enumerate(batches, start=first):
            number = jnp.asarray(step)  # given to the compiled program, which an int would be a part of
            if stored:
                yield draw_stored(tokenizer, batch, key, number)
            else:
                yield encode_batch(tokenizer, batch, key, number, mesh)
    finally:
        batches.close()


@eqx.filter_jit
def encode_batch(tokenizer: AbstractTokenizer, batch: Batch, key: PRNGKeyArray, step: Array, mesh: Mesh) -> Batch:
    """Encodes the images of a batch, no more at once than the devices can hold, and draws the latent of each."""
    return _drawn(chunked_vmap(tokenizer.encode, jnp.asarray(batch.image), mesh), batch, key, step)


@eqx.filter_jit
def draw_stored(tokenizer: AbstractTokenizer, batch: Batch, key: PRNGKeyArray, step: Array) -> Batch:
    """Draws the latent of each image of a batch from the mean and log-variance of its z, or takes the mean alone."""
    z = jax.vmap(lambda moments: split_moments(moments, tokenizer.latent_channels))(jnp.asarray(batch.image))
    return _drawn(jax.vmap(lambda p: p.standardised(tokenizer.shift, tokenizer.scale))(z), batch, key, step)


def split_moments(moments: Float[Array, "h w stored"], channels: int) -> Posterior:
    """Mean and log-variance, where there are both, of a latent of so many channels."""
    if moments.shape[-1] == channels:
        return Posterior(moments)
    return Posterior(moments[..., :channels], moments[..., channels:])


def join_moments(posterior: Posterior, *, mode_only: bool) -> Float[Array, "h w stored"]:
    """The inverse of `split_moments`; a point is stored by its place alone."""
    if mode_only or posterior.logvar is None:
        return posterior.mean
    return jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)


def _drawn(posterior: Posterior, batch: Batch, key: PRNGKeyArray, step: Array) -> Batch:
    keys = jax.random.split(jax.random.fold_in(key, step), len(batch.image))
    return Batch(jax.vmap(lambda p, k: p.sample(k))(posterior, keys), batch.label, batch.valid)
