import gc
import itertools
import subprocess
import sys
import threading
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Batch, DataSpec
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.loader import batch_at, evaluation_batches, training_batches, training_steps
from umd_eqx.data.source import BrokenImage, open_source
from umd_eqx.data.transforms import EvalTransform, TrainTransform


class Numbered(NamedTuple):
    """A source whose image i holds the number i; those in `broken` cannot be read."""

    size: int
    broken: tuple[int, ...] = ()

    @property
    def spec(self):
        return DataSpec("numbered", self.size, 0, 4, 4, 1, 1000)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.broken:
            raise BrokenImage(index, "on purpose")
        return {"image": np.full((4, 4, 1), index, np.uint8), "label": index}

    def labels(self, indices):
        return np.asarray(indices)


class Noisy:
    """A transform that shows the randomness it was given."""

    def __call__(self, image, rng):
        return image.astype(np.float32) + rng.random((4, 4, 1), np.float32) / 2


keep = TrainTransform(4, 100, flip=False)


def same(a, b):
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(leaves(a), leaves(b), strict=True))


def leaves(batch):
    return [np.asarray(x) for x in (batch.image, batch.label, batch.valid)]


def take(number, source, transform, **keywords):
    stream = training_batches(source, transform, **keywords)
    try:
        return list(itertools.islice(stream, number))
    finally:
        stream.close()


@pytest.mark.parametrize(("prefetch", "threads"), [(0, 2), (1, 1), (3, 2), (2, 5)])
def test_a_resumed_stream_goes_on_bit_for_bit(prefetch, threads):
    ahead = {"prefetch": prefetch, "threads": threads}
    whole = take(12, Numbered(11), Noisy(), batch_size=4, seed=3)
    for start in (0, 1, 5, 11):
        resumed = take(12 - start, Numbered(11), Noisy(), batch_size=4, seed=3, start_step=start, **ahead)
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))
        assert same(whole[start], batch_at(Numbered(11), Noisy(), batch_size=4, seed=3, step=start))


class Together:
    """A transform that returns when so many images are in the making at once; later ones do not wait."""

    def __init__(self, number):
        self.barrier, self.count = threading.Barrier(number), itertools.count()

    def __call__(self, image, rng=None):
        if next(self.count) < self.barrier.parties:
            self.barrier.wait(timeout=20)
        return image.astype(np.float32)


def test_so_many_threads_read_at_once():
    stream = training_batches(Numbered(11), Together(5), batch_size=1, seed=0, threads=5)
    next(stream)
    stream.close()


def test_batches_are_what_the_network_takes():
    (batch,) = take(1, Numbered(11), keep, batch_size=4, seed=0)
    assert isinstance(batch, Batch)
    assert batch.image.shape == (4, 4, 4, 1)
    assert [x.dtype for x in leaves(batch)] == [np.float32, np.int32, np.bool_]
    assert batch.valid.all()
    np.testing.assert_allclose((batch.image[:, 0, 0, 0] + 1) * 127.5, batch.label, atol=1e-4)


def test_each_epoch_holds_each_image_once_in_a_new_order():
    labels = np.concatenate([b.label for b in take(44, Numbered(11), keep, batch_size=3, seed=0)])
    epochs = labels.reshape(12, 11)  # a batch of 3 crosses the end of most epochs of 11
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(11), (12, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 12


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = take(1, Numbered(3), keep, batch_size=7, seed=0)
    np.testing.assert_array_equal(np.bincount(batch.label[:6]), [2, 2, 2])


def test_augmentation_depends_on_seed_and_position_only():
    def positions(batch_size, steps, seed=0):
        batches = take(steps, Numbered(5), Noisy(), batch_size=batch_size, seed=seed)
        return np.concatenate([b.image for b in batches])

    stream = positions(1, 20)
    np.testing.assert_array_equal(stream, positions(4, 5))
    np.testing.assert_array_equal(stream, positions(10, 2))
    noise = stream % 1
    assert len(np.unique(noise)) > 0.99 * noise.size  # nothing is drawn twice, in another epoch either
    assert not np.array_equal(stream, positions(1, 20, seed=1))


def test_a_stand_in_is_the_same_on_resuming():
    source = Numbered(9, broken=(2, 3))
    whole = take(9, SkipBroken(source), Noisy(), batch_size=4, seed=0)
    resumed = take(4, SkipBroken(source), Noisy(), batch_size=4, seed=0, start_step=5)
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    counts = np.bincount(np.concatenate([b.label for b in whole]), minlength=9)
    np.testing.assert_array_equal(counts, [4, 4, 0, 0, 12, 4, 4, 4, 4])


def test_errors_of_the_source_reach_the_reader():
    with pytest.raises(BadInput, match=r"data\.max_broken"):
        take(9, SkipBroken(Numbered(9, broken=(2, 3)), max_broken=1), keep, batch_size=4, seed=0)
    with pytest.raises(BrokenImage):
        take(9, Numbered(9, broken=(2, 3)), keep, batch_size=4, seed=0)


def test_wrong_numbers_are_refused():
    for keywords in ({"batch_size": 0, "seed": 0}, {"batch_size": 4, "seed": -1}, {"batch_size": 4, "seed": 2**32}):
        with pytest.raises(BadInput):
            training_batches(Numbered(9), keep, **keywords)
    with pytest.raises(BadInput):
        evaluation_batches(Numbered(9), EvalTransform(4), 0)


def grain_threads():
    return [thread for thread in threading.enumerate() if "grain" in thread.name]


@pytest.mark.parametrize("end", ["close", "forget", "error"])
def test_threads_end_with_the_stream(end):
    before = set(grain_threads())
    stream = training_batches(Numbered(9, broken=(5,) if end == "error" else ()), keep, batch_size=2, seed=0)
    next(stream)
    started = set(grain_threads()) - before
    assert started
    if end == "close":
        stream.close()
        assert next(stream, None) is None
    elif end == "error":
        with pytest.raises(BrokenImage):
            list(stream)
    del stream
    gc.collect()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_an_open_stream_holds_up_neither_the_exit_nor_ctrl_c_and_nothing_imports_tensorflow():
    code = """
import signal, sys
from umd_eqx.data.loader import training_batches
from umd_eqx.data.source import open_source
from umd_eqx.data.transforms import TrainTransform
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored
stream = training_batches(open_source("fashion_mnist", None, "test"), TrainTransform(28), batch_size=8, seed=0)
try:
    for step, batch in enumerate(stream):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(7 if "tensorflow" not in sys.modules else 8)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=60, capture_output=True, text=True)
    assert done.returncode == 7
    assert done.stderr == ""


def test_batches_are_put_where_they_belong():
    (plain,) = take(1, Numbered(9), Noisy(), batch_size=4, seed=0)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for sharding in (SingleDeviceSharding(jax.devices()[0]), NamedSharding(mesh, PartitionSpec("data"))):
        batch_size = 4 * jax.device_count()
        (plain,) = take(1, Numbered(9), Noisy(), batch_size=batch_size, seed=0)
        (placed,) = take(1, Numbered(9), Noisy(), batch_size=batch_size, seed=0, sharding=sharding)
        assert same(plain, placed)
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(placed))
        assert placed.image.sharding.is_equivalent_to(sharding, 4)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_evaluation_goes_through_all_images_in_order(prefetch):
    batches = list(evaluation_batches(Numbered(10), EvalTransform(4), 4, prefetch=prefetch))
    assert [b.image.shape for b in batches] == [(4, 4, 4, 1)] * 3
    np.testing.assert_array_equal(np.concatenate([b.label for b in batches]), [*range(10), 0, 0])
    np.testing.assert_array_equal(np.concatenate([b.valid for b in batches]), [True] * 10 + [False] * 2)
    assert not batches[-1].image[2:].any()
    assert [x.dtype for x in leaves(batches[0])] == [np.float32, np.int32, np.bool_]


def test_so_many_threads_evaluate_at_once():
    batches = list(evaluation_batches(Numbered(5), Together(5), 1, threads=5))
    np.testing.assert_array_equal(np.concatenate([b.label for b in batches]), np.arange(5))


def test_evaluation_of_some_images():
    (batch,) = evaluation_batches(Numbered(10), EvalTransform(4), 4, [7, 2, 7])
    np.testing.assert_array_equal(batch.label, [7, 2, 7, 0])
    assert list(evaluation_batches(Numbered(10), EvalTransform(4), 4, [])) == []


def test_a_broken_image_is_an_invalid_row():
    first, second = evaluation_batches(Numbered(4, broken=(1, 2, 3)), EvalTransform(4), 2)
    np.testing.assert_array_equal(first.valid, [True, False])
    np.testing.assert_array_equal(second.valid, [False, False])
    assert not second.image.any()
    assert not second.label.any()


def test_images_of_different_sizes_make_batches(colour_root):
    source = open_source("tiny", str(colour_root), "train")
    (batch,) = take(1, source, TrainTransform(8), batch_size=12, seed=0)
    assert batch.image.shape == (12, 8, 8, 3)
    (batch,) = evaluation_batches(source, EvalTransform(8), 6)
    np.testing.assert_array_equal(batch.label, [0, 1, 2, 3, 4, 4])
    assert batch.valid.all()


def test_some_rows_of_a_batch_are_loaded_alone():
    asked = []

    class Counting(Numbered):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    rows = np.array([1, 2, 5])
    steps = training_steps(Counting(7), Noisy(), 6, 0, rows)
    for step in (0, 3, 10**6):
        asked.clear()
        whole = batch_at(Numbered(7), Noisy(), batch_size=6, seed=0, step=step)
        assert same(steps[step], jax.tree.map(lambda x: x[rows], whole))
        assert len(asked) == 3
