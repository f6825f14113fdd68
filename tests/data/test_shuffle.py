"""The order of the training examples, held to what a random order of every epoch would show."""

import concurrent.futures
import itertools

import numpy as np
import pytest

from umd_eqx.core.types import DataSpec
from umd_eqx.data import shuffle
from umd_eqx.data.loader import batch_at, training_batches
from umd_eqx.data.shuffle import CACHED_EPOCHS, Shuffle, epoch_order
from umd_eqx.data.source import Example

SIZES = (1_000, 60_000, 1_281_167)
LAGS = range(1, 9)


class Indices:
    """A source without pixels: the label of example i is i."""

    def __init__(self, size):
        self.size = size
        self.spec = DataSpec("indices", size, 0, 1, 1, 1, size)

    def __len__(self):
        return self.size

    def labels(self, indices):
        return np.asarray(indices)

    def __getitem__(self, index) -> Example:
        return {"image": np.zeros((1, 1, 1), np.uint8), "label": index}


def as_it_is(image, rng):
    return image.astype(np.float32)


def correlation(a, b):
    return np.corrcoef(np.asarray(a, np.float64), np.asarray(b, np.float64))[0, 1]


def again(first, second, batch_size):
    """Pairs that share a batch in one epoch and in the next, by how many chance has it; and their number."""
    size = len(first)
    batch = np.arange(size) // batch_size
    batches = int(batch[-1]) + 1
    later = np.empty(size, np.int64)
    later[second] = batch
    met = pairs_in(np.bincount(batch * batches + later[first]))
    together = pairs_in(np.bincount(batch))
    return met / (together * together / pairs_in(np.array([size]))), met


def pairs_in(counts):
    return int(np.sum(counts.astype(np.int64) * (counts - 1)) // 2)


@pytest.mark.parametrize("size", SIZES)
def test_successive_positions_are_uncorrelated(size):
    for seed, epoch in ((0, 0), (0, 1), (5, 3)):
        order = epoch_order(size, seed, epoch)
        for lag in LAGS:
            assert abs(correlation(order[lag:], order[:-lag])) < 4 / size**0.5


@pytest.mark.parametrize("size", SIZES)
def test_epochs_and_seeds_are_independent(size):
    first = epoch_order(size, 0, 0)
    for other in (epoch_order(size, 0, 1), epoch_order(size, 0, 2), epoch_order(size, 1, 0), epoch_order(size, 1, 1)):
        assert abs(correlation(first, other)) < 4 / size**0.5
        # The places in two orders of the same examples, too.
        assert abs(correlation(np.argsort(first), np.argsort(other))) < 4 / size**0.5


@pytest.mark.parametrize(("size", "batch_size", "epochs"), [(1_000, 50, 20), (60_000, 32, 22), (1_281_167, 512, 3)])
def test_pairs_that_shared_a_batch_meet_again_as_often_as_chance_has_it(size, batch_size, epochs):
    orders = [epoch_order(size, 0, epoch) for epoch in range(epochs)]
    ratios, met = zip(*(again(a, b, batch_size) for a, b in itertools.pairwise(orders)), strict=True)
    assert sum(met) > 9_000  # enough that chance alone stays within a few percent
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.04)
    assert all(abs(ratio - 1) < 5 * (ratio / count) ** 0.5 for ratio, count in zip(ratios, met, strict=True))


def test_the_batches_of_training_have_this_order():
    # What is held to the tests above is what a run is given.
    batches = training_batches(Indices(60_000), as_it_is, batch_size=1000, seed=1, prefetch=0)
    labels = np.concatenate([batch.label for batch in itertools.islice(batches, 60)])
    np.testing.assert_array_equal(np.sort(labels), np.arange(60_000))
    for lag in LAGS:
        assert abs(correlation(labels[lag:], labels[:-lag])) < 4 / 60_000**0.5
    np.testing.assert_array_equal(labels, epoch_order(60_000, 1, 0))
    np.testing.assert_array_equal(next(batches).label, epoch_order(60_000, 1, 1)[:1000])


@pytest.mark.parametrize("size", [1, 2, 3, 1024, 1025])
def test_each_example_is_in_an_epoch_once(size):
    for epoch in (0, 1, 2**40):
        order = epoch_order(size, 2**32 - 1, epoch)
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_every_order_of_few_examples_is_as_frequent():
    orders, counts = np.unique([epoch_order(3, 0, epoch) for epoch in range(6000)], axis=0, return_counts=True)
    assert len(orders) == 6
    assert abs(counts - 1000).max() < 5 * (6000 * 5 / 36) ** 0.5


def test_the_order_stays_what_it_was():
    # Recorded: it must not change with NumPy, since runs resume by it.
    np.testing.assert_array_equal(epoch_order(8, 0, 0), [0, 2, 1, 5, 4, 3, 6, 7])
    np.testing.assert_array_equal(epoch_order(8, 3, 7), [5, 0, 6, 7, 4, 2, 3, 1])


@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_sizes_that_cannot_be_ordered_are_refused(size):
    with pytest.raises(ValueError, match="must be in 1"):
        epoch_order(size, 0, 0)


def test_few_orders_are_kept_and_each_is_computed_once(monkeypatch):
    computed = []

    def counting(size, seed, epoch):
        computed.append(epoch)
        return epoch_order(size, seed, epoch)

    monkeypatch.setattr(shuffle, "epoch_order", counting)
    order = Shuffle(50, 0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(order, range(500)))
    np.testing.assert_array_equal(got, np.concatenate([epoch_order(50, 0, epoch) for epoch in range(10)]))
    assert len(order._orders) <= CACHED_EPOCHS
    one_by_one, computed[:] = Shuffle(50, 0), []
    for position in range(500):
        one_by_one(position)
    assert computed == list(range(10))
    assert len(one_by_one._orders) == CACHED_EPOCHS
    assert all(kept.nbytes == 4 * 50 for kept in one_by_one._orders.values())


def test_any_step_can_be_asked_for_in_any_order():
    for step in (10**12, 0, 10**6, 3):
        labels = batch_at(Indices(100), as_it_is, batch_size=7, seed=2, step=step).label
        places = [divmod(position, 100) for position in range(step * 7, step * 7 + 7)]
        np.testing.assert_array_equal(labels, [epoch_order(100, 2, epoch)[place] for epoch, place in places])
