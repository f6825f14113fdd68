"""Sampling of many images, in batches distributed over the devices."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.processes import to_devices, to_host
from umd_eqx.core.sharding import batch_sharding, make_mesh, on_mesh, round_up_to_devices
from umd_eqx.core.types import NO_CLASS, Image, Label
from umd_eqx.sampling.base import AbstractSampler
from umd_eqx.sampling.denoisers import AbstractDenoiser


def sample(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    labels: Int[np.ndarray, "n"],
    key: PRNGKeyArray,
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    noise: Float[np.ndarray, "n h w c"] | None = None,
    progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> Float[np.ndarray, "n h w c"]:
    """Samples an image for each label. The images are in [-1, 1] if the sampler clips.

    The noise of an image depends only on `key` and its index, not on the batch size or the devices.

    **Arguments:**

    - `denoiser`: the denoiser of a network (`AbstractSampler.denoiser`), with or without guidance. It is conditioned on
        the label of each image.
    - `labels`: 0 .. num_classes - 1, or `NO_CLASS`; ignored by a network without labels.
    - `batch_size`: the number of images sampled at once, rounded up to a multiple of the number of devices.
    - `mesh`: the devices over which each batch is distributed; None uses all.
    - `noise`: standard normal noise to use instead of the noise drawn from `key`.
    - `progress`: called as `progress(done, total)` after each batch.
    - `first`: the index of the first image, for a part of a larger number of images with the same `key`.

    **Raises:** `BadInput` naming `labels` for a label that is neither a class of the network nor `NO_CLASS`.
    """
    require_labels(labels, denoiser.model.num_classes)
    mesh = make_mesh() if mesh is None else mesh
    size = round_up_to_devices(batch_size, mesh)
    denoiser = on_mesh(denoiser, mesh)
    images = []
    for start in range(0, len(labels), size):
        rows = np.arange(start, min(start + size, len(labels)))
        filled = np.resize(rows, size)  # images that pad the last batch are discarded
        given = None if noise is None else noise[filled]
        batch = to_devices((first + filled, labels[filled], given), batch_sharding(mesh))
        images.append(to_host(sample_batch(denoiser, sampler, key, *batch))[: len(rows)])
        if progress is not None:
            progress(int(rows[-1]) + 1, len(labels))
    return np.concatenate(images) if images else np.zeros((0, *denoiser.model.image_shape), np.float32)


def require_labels(labels: Int[np.ndarray, "n"], num_classes: int | None) -> None:
    """Raises `BadInput` naming `labels` unless all labels are `NO_CLASS` or in 0 .. num_classes - 1.

    A network without labels (`num_classes` None) accepts any label.
    """
    if num_classes is None:
        return
    wrong = (labels != NO_CLASS) & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        problem = f"{labels[wrong][0]} is not one of the {num_classes} classes"
        raise BadInput("labels", problem, f"Use 0 .. {num_classes - 1}, or NO_CLASS ({NO_CLASS}) for no class")


def image_noise(key: PRNGKeyArray, index: Int[Array, ""], shape: tuple[int, int, int]) -> tuple[Image, Key[Array, ""]]:
    """Returns the initial noise of an image, and the key for the noise that is added at each step."""
    first, rest = jax.random.split(jax.random.fold_in(key, index))
    return jax.random.normal(first, shape, jnp.float32), rest


@eqx.filter_jit
def sample_batch(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    key: PRNGKeyArray,
    indices: Int[Array, "b"],
    labels: Int[Array, "b"],
    noise: Float[Array, "b h w c"] | None,
) -> Float[Array, "b h w c"]:
    """Samples an image for each index and label, from `noise` or from the noise that `key` and the index determine."""

    def one(index: Int[Array, ""], y: Label, given: Image | None) -> Image:
        drawn, rest = image_noise(key, index, denoiser.model.image_shape)
        conditioned = denoiser.with_cond(denoiser.model.cond(y))
        return sampler(conditioned, drawn if given is None else given, rest)

    return jax.vmap(one)(indices, jnp.asarray(labels, jnp.int32), noise)
