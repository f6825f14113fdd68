"""Images that cannot be read: counted, and replaced in training. Too many of them end the run."""

import numpy as np
from jaxtyping import Int

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.source import BrokenImage, DataSource, Example


class CountBroken:
    """A source that counts its broken images, and raises `BrokenImage` for each as before. For evaluation.

    `broken` holds the indices found to be broken so far.

    **Arguments:**

    - `source`: any source.
    - `max_broken`: more broken images than this, and reading raises `BadInput` naming `--data.max-broken`.
    - `split`: what the message calls the source.
    """

    def __init__(self, source: DataSource, max_broken: int = 100, *, split: str = "the data"):
        self._source, self._max_broken, self._split = source, max_broken, split
        self.broken: set[int] = set()

    @property
    def spec(self) -> DataSpec:
        """Facts of the data set."""
        return self._source.spec

    def __len__(self) -> int:
        return len(self._source)

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The classes of some examples, as the source has them."""
        return self._source.labels(indices)

    def __getitem__(self, index: int) -> Example:
        try:
            return self._source[index]
        except BrokenImage as error:
            self.broken.add(index)  # one operation, hence safe among threads
            if len(self.broken) > self._max_broken:
                problem = f"{len(self.broken)} broken images, more than {self._max_broken}, in {self._split}; the last"
                raise BadInput("--data.max-broken", f"{problem}: {error}", "Mend the data, or allow more.") from error
            raise


class SkipBroken:
    """A source in which the next image that can be read stands in for a broken one. For training.

    Which image that is depends on nothing but the data. Broken images are counted as by `CountBroken`, which has the
    same arguments.
    """

    def __init__(self, source: DataSource, max_broken: int = 100, *, split: str = "the data"):
        self._source, self._split = CountBroken(source, max_broken, split=split), split

    @property
    def broken(self) -> set[int]:
        """The indices found to be broken so far."""
        return self._source.broken

    @property
    def spec(self) -> DataSpec:
        """Facts of the data set."""
        return self._source.spec

    def __len__(self) -> int:
        return len(self._source)

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The classes of some examples, as the source has them."""
        return self._source.labels(indices)

    def __getitem__(self, index: int) -> Example:
        size = len(self)
        for j in ((index + step) % size for step in range(size)):
            if j in self.broken:
                continue
            try:
                return self._source[j]
            except BrokenImage:
                continue
        problem = f"all of the {size} images in {self._split} are broken"
        raise BadInput("--data.max-broken", problem, "Mend the data.")
