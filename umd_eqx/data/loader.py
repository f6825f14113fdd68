"""Batches as pure functions of (source, transform, seed, step), made ahead by threads.

Position p of the training stream (step p // batch_size, row p % batch_size) is one example of a shuffled epoch and one
draw of the augmentation; both depend on (seed, p) only. So resuming is starting at another step, and there is no state.
"""

import math
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import grain
import jax
import numpy as np
from jaxtyping import Float32, UInt8

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Batch
from umd_eqx.data.shuffle import Shuffle
from umd_eqx.data.source import BrokenImage, DataSource

RandomTransform = Callable[[UInt8[np.ndarray, "h w c"], np.random.Generator], Float32[np.ndarray, "size size c"]]
"""From the pixels of an image and a source of randomness to what the network is fed, in [-1, 1]."""
Transform = Callable[[UInt8[np.ndarray, "h w c"]], Float32[np.ndarray, "size size c"]]
"""The same without randomness."""


def training_batches(
    source: DataSource,
    transform: RandomTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    sharding: jax.sharding.Sharding | None = None,
    prefetch: int = 2,
    threads: int = 2,
) -> Generator[Batch, None, None]:
    """The endless stream of training batches from `start_step` on.

    Each epoch goes through the images in a random order of its own (`umd_eqx.data.shuffle`), and a batch may hold the
    end of one epoch and the beginning of the next, so that each image is seen once an epoch. Batch k of a stream begun
    at step s is bit for bit batch s + k of one begun at 0.

    **Arguments:**

    - `source`: the images; wrap it into `SkipBroken` where some may be broken.
    - `transform`: called as `transform(image, rng)`.
    - `batch_size`: images in a batch, over all processes.
    - `seed`: of shuffling and augmentation, 0 .. 2**32 - 1.
    - `start_step`: the first step.
    - `sharding`: where the arrays go (leading axis first); each process then loads the rows of its own devices only.
        None leaves them numpy arrays.
    - `prefetch`: batches made ahead and put on their devices, though no fewer than there are threads; 0 makes each
        when it is asked for, without threads.
    - `threads`: how many of these batches are in the making at once, each by a thread of its own; 1 or more.

    **Returns:** a generator; `close()` (or letting go of it) ends its threads. `image` float32 (batch, size, size,
    channels), `label` int32, `valid` all true.

    **Raises:** `BadInput` naming `--batch-size` or `--seed`, or `--data.train-split` for a source without images; while
    it runs, whatever the source raises.
    """
    rows = np.arange(batch_size) if sharding is None else _local_rows(sharding, batch_size)
    steps = _training_steps(source, transform, batch_size, seed, rows)
    if sharding is not None:
        steps = steps.map(lambda local: _on_devices(local, rows, batch_size, sharding))
    return _stream(steps[start_step:], prefetch, threads)


def batch_at(source: DataSource, transform: RandomTransform, *, batch_size: int, seed: int, step: int) -> Batch:
    """The batch of one step, as numpy arrays: what `training_batches` yields for it."""
    return cast(Batch, _training_steps(source, transform, batch_size, seed, np.arange(batch_size))[step])


def evaluation_batches(
    source: DataSource,
    transform: Transform,
    batch_size: int,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    prefetch: int = 2,
    threads: int = 2,
) -> Generator[Batch, None, None]:
    """All images once, in order, as numpy arrays.

    **Arguments:**

    - `source`: the images.
    - `transform`: called as `transform(image)`.
    - `batch_size`: rows of each batch.
    - `indices`: which examples, in which order; None for all.
    - `prefetch`, `threads`: as in `training_batches`.

    **Returns:** a generator of batches that all have `batch_size` rows. The rows that fill up the last one, and those
    of images that cannot be read, hold zeros, label 0 and `valid` False.

    **Raises:** `BadInput` naming `--batch-size`; while it runs, whatever the source raises but `BrokenImage`.
    """
    _check_batch_size(batch_size)
    wanted = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)

    def batch(step: int) -> Batch:
        return _evaluation_batch(source, transform, wanted[step * batch_size : (step + 1) * batch_size], batch_size)

    steps = math.ceil(len(wanted) / batch_size)
    return _stream(grain.MapDataset.range(steps).map(batch), prefetch, threads)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise BadInput("--batch-size", f"{batch_size} images make no batch", "Take 1 or more.")


def _training_steps(
    source: DataSource, transform: RandomTransform, batch_size: int, seed: int, rows: np.ndarray
) -> grain.MapDataset[Batch]:
    """These rows of the batches of all steps, by index; a batch is computed when it is asked for."""
    _check_batch_size(batch_size)
    if not 0 <= seed < 2**32:
        raise BadInput("--seed", f"{seed} is not in 0 .. 2**32 - 1", "Take another.")
    if len(source) == 0:
        raise BadInput("--data.train-split", f"{source.spec.name} has no images to train on", "Take a larger part.")
    shuffle = Shuffle(len(source), seed)

    def augment(position: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        example = source[shuffle(position)]
        return transform(example["image"], rng), np.asarray(example["label"], np.int32)

    stream = grain.MapDataset.range(sys.maxsize).random_map(augment, seed=seed)
    number = len(rows)
    if number == batch_size:
        mine = stream
    else:  # the other rows belong to other processes
        mine = grain.MapDataset.range(len(stream) // batch_size * number).map(
            lambda i: stream[i // number * batch_size + int(rows[i % number])]
        )
    return mine.batch(number, drop_remainder=True).map(lambda examples: Batch(*examples, valid=np.ones(number, bool)))


def _local_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """The rows of a batch, in ascending order, that lie on the devices of this process."""
    _check_batch_size(batch_size)
    try:
        places = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        hint = "Take a multiple of the number of devices."
        raise BadInput("--batch-size", f"{batch_size} images cannot be shared out evenly", hint) from error
    return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places]))


def _on_devices(local: Batch, rows: np.ndarray, batch_size: int, sharding: jax.sharding.Sharding) -> Batch:
    """Put this process's rows on its devices, as parts of arrays that span all processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(local, sharding)

    def put(array: np.ndarray) -> jax.Array:
        def shard(place: Any) -> np.ndarray:
            return array[np.searchsorted(rows, np.arange(batch_size)[place[0]])]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, shard)

    return jax.tree.map(put, local)


def _evaluation_batch(source: DataSource, transform: Transform, indices: np.ndarray, batch_size: int) -> Batch:
    """One row for each index, then padding."""
    spec = source.spec
    # A blank image says which shape comes out, since all of the images may be broken.
    blank = transform(np.zeros((spec.height or 64, spec.width or 64, spec.channels), np.uint8))
    image = np.zeros((batch_size, *blank.shape), blank.dtype)
    label = np.zeros(batch_size, np.int32)
    valid = np.zeros(batch_size, bool)
    for row, i in enumerate(indices):
        try:
            example = source[int(i)]
        except BrokenImage:
            continue
        image[row], label[row], valid[row] = transform(example["image"]), example["label"], True
    return Batch(image, label, valid)


def _stream(steps: grain.MapDataset[Batch], prefetch: int, threads: int) -> Generator[Batch, None, None]:
    """The batches in order, made ahead; the threads end with the generator."""
    ahead = max(prefetch, threads) if prefetch else 0  # a thread without a batch to make would be idle
    options = grain.ReadOptions(num_threads=threads if prefetch else 0, prefetch_buffer_size=ahead)
    iterator = iter(steps.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
