"""Batches as pure functions of (source, transform, seed, step), prefetched by threads or processes.

Position p of the training stream (step p // batch_size, row p % batch_size) is one example of a shuffled epoch and one
draw of the augmentation, which depend only on (seed, p). The loader is therefore stateless: to resume is to start at
another step.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import grain
import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Batch
from umd_eqx.data.augment import augment_encoded
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.decoding import EncodedSource
from umd_eqx.data.shuffle import Shuffle
from umd_eqx.data.source import BrokenImage, DataSource
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.data.workers import by_processes

RandomTransform = Callable[[UInt8[np.ndarray, "h w c"], np.random.Generator], Float32[np.ndarray, "size size c"]]
"""A function from the pixels of an image and a random generator to the input of the network, in [-1, 1]."""
Transform = Callable[[UInt8[np.ndarray, "h w c"]], Float32[np.ndarray, "size size c"]]
"""A deterministic function from the pixels of an image to the input of the network, in [-1, 1]."""


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
    processes: int = 0,
) -> Generator[Batch, None, None]:
    """Returns the infinite stream of training batches from `start_step` on.

    Each epoch visits every image once, in its own random order (`umd_eqx.data.shuffle`); a batch may contain the end of
    one epoch and the beginning of the next. Batch k of a stream started at step s is bitwise equal to batch s + k of a
    stream started at 0.

    **Arguments:**

    - `source`: the images; wrap it in `SkipBroken` if some may be broken.
    - `transform`: called as `transform(image, rng)`.
    - `batch_size`: the number of images in a batch, over all processes.
    - `seed`: the seed of shuffling and augmentation, 0 .. 2**32 - 1.
    - `start_step`: the first step.
    - `sharding`: the sharding of the arrays (leading axis first); each process then loads only the rows of its own
        devices. None: NumPy arrays.
    - `prefetch`: the number of batches that are computed ahead and put on their devices, at least `threads`. With 0,
        each batch is computed on demand, without threads.
    - `threads`: the number of batches computed at the same time, each by its own thread; 1 or more.
    - `processes`: the number of processes that compute batches, in place of threads (`umd_eqx.data.workers`); 0 for
        none. The batches are the same.

    **Returns:** a generator; its threads or processes end with `close()`, or when it is garbage-collected. `image` is
    float32 (batch, size, size, channels), `label` is int32, and `valid` is all true.

    **Raises:** `BadInput` naming `batch_size` or `seed`, or `data.train_split` for a source without images;
    during iteration, any exception of the source, and `BadInput` naming `data.workers` for a process that ends.
    """
    rows = np.arange(batch_size) if sharding is None else _local_rows(sharding, batch_size)
    steps = training_steps(source, transform, batch_size, seed, rows)
    if processes:
        prepare = functools.partial(_prepared, source, transform, batch_size, seed, rows)
        return _from_processes(by_processes(prepare, start_step, processes), source, rows, batch_size, sharding)
    if sharding is not None:
        steps = steps.map(lambda local: _on_devices(local, rows, batch_size, sharding))
    return _stream(steps[start_step:], prefetch, threads)


def batch_at(
    source: DataSource,
    transform: RandomTransform,
    *,
    batch_size: int,
    seed: int,
    step: int,
    rows: Int[np.ndarray, "n"] | None = None,
) -> Batch:
    """Returns the batch that `training_batches` yields at a step, as NumPy arrays.

    **Arguments:** `rows`, the rows of the batch that are wanted, and no others are read; None for all. The others are
    those of `training_batches`, as are the errors.
    """
    rows = np.arange(batch_size) if rows is None else rows
    return cast(Batch, training_steps(source, transform, batch_size, seed, rows)[step])


def evaluation_batches(
    source: DataSource,
    transform: Transform,
    batch_size: int,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    prefetch: int = 2,
    threads: int = 2,
) -> Generator[Batch, None, None]:
    """Returns batches of all images once, in order, as NumPy arrays.

    **Arguments:**

    - `source`: the images.
    - `transform`: called as `transform(image)`.
    - `batch_size`: the number of rows of each batch.
    - `indices`: the examples to use, in this order; None for all.
    - `prefetch`, `threads`: as in `training_batches`.

    **Returns:** a generator of batches that all have `batch_size` rows. Rows that pad the last batch, and rows of
    images that cannot be read, contain zeros, label 0 and `valid` False.

    **Raises:** `BadInput` naming `batch_size`; during iteration, any exception of the source except `BrokenImage`.
    """
    _check_batch_size(batch_size)
    wanted = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)

    def batch(step: int) -> Batch:
        return _evaluation_batch(source, transform, wanted[step * batch_size : (step + 1) * batch_size], batch_size)

    steps = math.ceil(len(wanted) / batch_size)
    return _stream(grain.MapDataset.range(steps).map(batch), prefetch, threads)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise BadInput("batch_size", f"{batch_size} is not positive", "Use 1 or more")


def training_steps(
    source: DataSource, transform: RandomTransform, batch_size: int, seed: int, rows: Int[np.ndarray, "n"]
) -> grain.MapDataset[Batch]:
    """Returns the batches of `training_batches` by step, as NumPy arrays that are computed on access.

    **Arguments:** as there; `rows`, the rows of each batch that are wanted, and no others are read.
    """
    _check_batch_size(batch_size)
    if not 0 <= seed < 2**32:
        raise BadInput("seed", f"{seed} is not in 0 .. 2**32 - 1", "Use another seed")
    if len(source) == 0:
        raise BadInput("data.train_split", f"{source.spec.name} has no images to train on", "Use a larger part")
    shuffle = Shuffle(len(source), seed)

    def augment(position: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, label = _augmented(source, transform, shuffle(position), rng)
        return image, np.asarray(label, np.int32)

    stream = grain.MapDataset.range(sys.maxsize).random_map(augment, seed=seed)
    number = len(rows)
    if number == batch_size:
        mine = stream
    else:  # the other rows belong to other processes
        mine = grain.MapDataset.range(len(stream) // batch_size * number).map(
            lambda i: stream[i // number * batch_size + int(rows[i % number])]
        )
    return mine.batch(number, drop_remainder=True).map(lambda examples: Batch(*examples, valid=np.ones(number, bool)))


def _augmented(
    source: DataSource, transform: RandomTransform, index: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Returns an example, augmented. Images are decoded together with the transform where source and transform can."""
    if isinstance(transform, TrainTransform) and isinstance(source, EncodedSource):
        before = rng.bit_generator.state
        try:
            encoded = source.encoded(index)
            if encoded is not None:
                return augment_encoded(transform, encoded.image, rng), encoded.label
        except MemoryError:
            raise
        except Exception:  # of various types: the image is broken, and source[index] says so or stands in for it
            rng.bit_generator.state = before
    example = source[index]
    return transform(example["image"], rng), example["label"]


def _prepared(
    source: DataSource, transform: RandomTransform, batch_size: int, seed: int, rows: np.ndarray
) -> Callable[[int], tuple[Batch, list[int]]]:
    """Returns, in a process of its own, a function of a step: its batch, and which images were newly found broken."""
    steps = training_steps(source, transform, batch_size, seed, rows)
    told: set[int] = set()

    def compute(step: int) -> tuple[Batch, list[int]]:
        batch = cast(Batch, steps[step])
        broken = sorted(source.broken - told) if isinstance(source, SkipBroken) else []
        told.update(broken)
        return batch, broken

    return compute


def _from_processes(
    items: Generator[tuple[Batch, list[int]], None, None],
    source: DataSource,
    rows: np.ndarray,
    batch_size: int,
    sharding: jax.sharding.Sharding | None,
) -> Generator[Batch, None, None]:
    """Yields the batches of processes, put on the devices, and counts here the broken images that were found there."""
    with contextlib.closing(items):
        for batch, broken in items:
            if isinstance(source, SkipBroken):
                source.recount(broken)
            yield batch if sharding is None else _on_devices(batch, rows, batch_size, sharding)


def _local_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch, in ascending order, that are on the devices of this process."""
    _check_batch_size(batch_size)
    try:
        slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        hint = "Use a multiple of the number of devices"
        raise BadInput("batch_size", f"{batch_size} images cannot be divided evenly over devices", hint) from error
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in slices]))


def _on_devices(local: Batch, rows: np.ndarray, batch_size: int, sharding: jax.sharding.Sharding) -> Batch:
    """Puts the rows of this process on its devices, as parts of arrays that span all processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(local, sharding)

    def put(array: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            return array[np.searchsorted(rows, np.arange(batch_size)[index[0]])]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, shard)

    return jax.tree.map(put, local)


def _evaluation_batch(source: DataSource, transform: Transform, indices: np.ndarray, batch_size: int) -> Batch:
    """Returns a batch with one row for each index, followed by padding."""
    spec = source.spec
    # The output shape comes from a blank image, because all images may be broken.
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
    """Returns the batches in order, prefetched; the threads end with the generator."""
    ahead = max(prefetch, threads) if prefetch else 0  # a thread without a batch to compute would be idle
    options = grain.ReadOptions(num_threads=threads if prefetch else 0, prefetch_buffer_size=ahead)
    iterator = iter(steps.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
