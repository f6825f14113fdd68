"""Features and class probabilities of many images from an extractor, batch by batch over the devices."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, UInt8

from umd_eqx.core.processes import to_devices, to_host
from umd_eqx.core.sharding import batch_sharding, place, replicated, round_up_to_devices
from umd_eqx.eval.distances import Statistics, add
from umd_eqx.models.extractors.base import AbstractExtractor

BATCH = 64
"""Default batch size: two gigabytes of Inception's activations."""

_BLOCK = 1024
"""Number of rows whose statistics are merged at once: merging each batch would cost more than the network."""


class Features(NamedTuple):
    """Statistics of all images of a set, with the features and class probabilities of all or the first, as rows."""

    statistics: Statistics
    features: Float32[np.ndarray, "kept d"]
    probabilities: Float32[np.ndarray, "kept classes"]


def activations(
    extractor: AbstractExtractor,
    images: Iterable[UInt8[np.ndarray, "_ h w c"]],
    mesh: Mesh,
    progress: Callable[[int], None] | None = None,
    *,
    batch_size: int = BATCH,
    keep: int | None = None,
) -> Features:
    """Computes features and class probabilities of a stream of images, holding at most two batches at once.

    The result depends on the batch size and the number of devices only by float32 rounding.

    **Arguments:**

    - `images`: pixel values 0-255, in arrays of any number of images, all of the same shape.
    - `mesh`: the devices that each batch is sharded over.
    - `progress`: called with the number of images done after each batch.
    - `batch_size`: rounded up to a multiple of the devices. The padding of the last batch is not counted.
    - `keep`: number of rows of features and probabilities to keep, from the first; None keeps all. The statistics are
      always those of all images. A set that is ordered by class must be shuffled first.

    **Raises:** `ValueError` for no images, or for images of different shapes.
    """
    size = round_up_to_devices(batch_size, mesh)
    extractor = place(extractor, replicated(mesh))
    statistics, waiting, kept, done = None, [], [], 0
    for features, probabilities in _streamed(extractor, _regrouped(images, size), size, mesh):
        done += len(features)
        waiting.append(features)
        if sum(map(len, waiting)) >= _BLOCK:
            statistics, waiting = add(statistics, np.concatenate(waiting)), []
        if keep is None or not kept or done - len(features) < keep:
            kept.append((features, probabilities))
        if progress is not None:
            progress(done)
    if not done:
        raise ValueError("no images to compute features of")
    if waiting:
        statistics = add(statistics, np.concatenate(waiting))
    features, probabilities = (np.concatenate(column)[:keep] for column in zip(*kept, strict=True))
    assert statistics is not None
    return Features(statistics, features, probabilities)


def _streamed(
    extractor: AbstractExtractor, groups: Iterable[np.ndarray], size: int, mesh: Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # One batch is dispatched ahead: the devices compute it while the host processes the previous one.
    ahead: deque[tuple[int, tuple[Array, Array]]] = deque()
    for group in groups:
        batch = np.concatenate([group, np.zeros((size - len(group), *group.shape[1:]), np.uint8)])
        ahead.append((len(group), activate_batch(extractor, to_devices(batch, batch_sharding(mesh)))))
        if len(ahead) > 1:
            yield _fetched(*ahead.popleft())
    while ahead:
        yield _fetched(*ahead.popleft())


def _fetched(count: int, outputs: tuple[Array, Array]) -> tuple[np.ndarray, np.ndarray]:
    features, probabilities = to_host(outputs)
    return features[:count], probabilities[:count]


@eqx.filter_jit
def activate_batch(
    extractor: AbstractExtractor, images: UInt8[Array, "b h w c"]
) -> tuple[Float32[Array, "b d"], Float32[Array, "b classes"]]:
    """Returns the features and class probabilities of each image of a batch."""
    features, logits = jax.vmap(extractor)(images.astype(jnp.float32))
    return features.astype(jnp.float32), jax.nn.softmax(logits.astype(jnp.float32))


def _regrouped(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields the rows of the arrays, in order, in groups of `size`; the last group may be smaller."""
    pieces, have, shape = [], 0, None
    for array in arrays:
        shape = array.shape[1:] if shape is None else shape
        if array.shape[1:] != shape:
            raise ValueError(f"images of different shapes, {shape} and {array.shape[1:]}, in one set")
        while len(array):
            piece, array = array[: size - have], array[size - have :]
            pieces.append(piece)
            have += len(piece)
            if have == size:
                yield np.concatenate(pieces)
                pieces, have = [], 0
    if pieces:
        yield np.concatenate(pieces)
