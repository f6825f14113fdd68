"""The order of the training examples: a random permutation for each epoch, a pure function of (seed, epoch)."""

import threading

import numpy as np
from jaxtyping import Int32

CACHED_EPOCHS = 3
"""The number of epochs whose order is cached: threads near the end of an epoch may be at different epochs."""


def epoch_order(size: int, seed: int, epoch: int) -> Int32[np.ndarray, "size"]:
    """Returns the permutation of 0 .. size - 1 in which an epoch visits the examples of a data set.

    The examples are sorted by random numbers, one for each. The numbers are the raw 64-bit stream of Philox (Salmon et
    al. 2011) with key (seed, epoch), which makes epochs and seeds independent. NumPy guarantees the stability of this
    stream, but not that of `Generator.permutation`: the order is the same in every NumPy version.

    **Arguments:**

    - `size`: the number of examples, 1 .. 2**31 - 1.
    - `seed`, `epoch`: 0 .. 2**64 - 1.

    **Returns:** the permutation. For 1.28 M examples, this takes 25 ms.

    **Raises:** `ValueError` for a size outside this range.
    """
    if not 0 < size < 2**31:
        raise ValueError(f"the size of a data set must be in 1 .. 2**31 - 1, not {size}")
    keys = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    # The index replaces the lowest bits. This makes the keys distinct, and every sorting algorithm then gives the same
    # order; moreover, sorting the numbers takes an eighth of the time of an argsort.
    bits = np.uint64((size - 1).bit_length())
    keys >>= bits
    keys <<= bits
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.astype(np.int32)


class Shuffle:
    """The infinite stream of examples, with each epoch in the order of `epoch_order`. Thread-safe.

    The orders of the `CACHED_EPOCHS` most recently computed epochs are cached, with 4 bytes per example; any other
    order is recomputed on access.

    **Arguments:** as for `epoch_order`.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, position: int) -> int:
        """Returns the index of the example at a position of the stream, 0, 1, 2, ..."""
        epoch, offset = divmod(position, self._size)
        order = self._orders.get(epoch)  # a single operation, therefore safe without the lock
        return int((self._order(epoch) if order is None else order)[offset])

    def _order(self, epoch: int) -> Int32[np.ndarray, "size"]:
        with self._lock:  # one thread computes an order, and other threads that need it wait
            order = self._orders.get(epoch)
            if order is None:
                order = epoch_order(self._size, self._seed, epoch)
                if len(self._orders) >= CACHED_EPOCHS:
                    del self._orders[next(iter(self._orders))]  # the one computed first
                self._orders[epoch] = order
            return order
