"""The order of the training examples: a random permutation for each epoch, a pure function of (seed, epoch)."""

import threading

import numpy as np
from jaxtyping import Int32

KEPT = 3
"""Epochs whose order is kept: while one thread makes a batch across the end of an epoch, others are beside it."""


def epoch_order(size: int, seed: int, epoch: int) -> Int32[np.ndarray, "size"]:
    """The permutation of 0 .. size - 1 in which one epoch goes through a data set.

    Every example is given a random number, and the examples are sorted by it. The numbers are the raw 64-bit stream of
    Philox (Salmon et al. 2011) with key (seed, epoch), so that epochs and seeds are independent of each other. NumPy
    promises never to change that stream, which it does not promise of `Generator.permutation`: the order is the same
    with every version of it.

    **Arguments:**

    - `size`: number of examples, 1 .. 2**31 - 1.
    - `seed`, `epoch`: 0 .. 2**64 - 1.

    **Returns:** each of 0 .. size - 1 once. For 1.28 M examples it takes 25 ms.

    **Raises:** `ValueError` for a size outside of that range.
    """
    if not 0 < size < 2**31:
        raise ValueError(f"the size of a data set must be in 1 .. 2**31 - 1, not {size}")
    keys = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    # The index takes the place of the lowest bits. The keys are distinct then, and every sorting algorithm gives the
    # same order; and sorting numbers takes an eighth of the time of sorting indices by them.
    bits = np.uint64((size - 1).bit_length())
    keys >>= bits
    keys <<= bits
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.astype(np.int32)


class Shuffle:
    """The endless stream of examples, each epoch in the order of `epoch_order`. Safe among threads.

    The orders of the `KEPT` newest epochs are kept, 4 bytes an example each; any other is computed again when it is
    asked for.

    **Arguments:** as `epoch_order`.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, position: int) -> int:
        """The index of the example at a position of the stream, 0, 1, 2, ..."""
        epoch, place = divmod(position, self._size)
        order = self._orders.get(epoch)  # a single operation, hence safe without the lock
        return int((self._order(epoch) if order is None else order)[place])

    def _order(self, epoch: int) -> Int32[np.ndarray, "size"]:
        with self._lock:  # one thread computes an order, and those that need it, too, wait for it
            order = self._orders.get(epoch)
            if order is None:
                order = epoch_order(self._size, self._seed, epoch)
                if len(self._orders) >= KEPT:
                    del self._orders[next(iter(self._orders))]  # the one computed first
                self._orders[epoch] = order
            return order
