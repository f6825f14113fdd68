"""Handling of images that cannot be read: they are counted, replaced in training, and limited in number."""

import contextlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.decoding import EncodedExample, EncodedSource
from umd_eqx.data.prepared import resize_of
from umd_eqx.data.source import BrokenImage, DataSource, Example


def most_broken(stated: int | None, images: int) -> int:
    """Returns how many of the images of a split may be broken: as stated, or 1 % of them and at least 10 for None."""
    return max(10, images // 100) if stated is None else stated


class CountBroken:
    """A source for evaluation that counts the broken images of another source, and raises `BrokenImage` for each.

    `broken` holds the indices of the broken images found so far.

    **Arguments:**

    - `source`: any source.
    - `max_broken`: if more images than this are broken, reading raises `BadInput` naming `data.max_broken`. None: as
        `most_broken` says.
    - `split`: the name of the source in messages.
    """

    def __init__(self, source: DataSource, max_broken: int | None = None, *, split: str = "the data"):
        self._source, self._max_broken, self._split = source, most_broken(max_broken, len(source)), split
        self.broken: set[int] = set()

    @property
    def spec(self) -> DataSpec:
        """The description of the data set."""
        return self._source.spec

    @property
    def resize(self) -> str | None:
        """How images were downsampled: see `resize_of`."""
        return resize_of(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the classes of the given examples, as the source does."""
        return self._source.labels(indices)

    def __getitem__(self, index: int) -> Example:
        try:
            return self._source[index]
        except BrokenImage as error:
            self.broken.add(index)  # a single operation, therefore thread-safe
            if len(self.broken) > self._max_broken:
                problem = f"{len(self.broken)} broken images, more than {self._max_broken}, in {self._split}; the last"
                raise BadInput("data.max_broken", f"{problem}: {error}", "Repair the data, or allow more") from error
            raise

    def encoded(self, index: int) -> EncodedExample | None:
        """Returns the example before it is decoded, as the source does, or None. Nothing is counted."""
        if index in self.broken or not isinstance(self._source, EncodedSource):
            return None
        return self._source.encoded(index)

    def recount(self, indices: Iterable[int]) -> None:
        """Counts images that were found broken in another process, by reading them again."""
        for index in indices:
            if index not in self.broken:
                with contextlib.suppress(BrokenImage):
                    self[index]


class SkipBroken:
    """A source for training that replaces each broken image by the next image that can be read.

    The replacement depends only on the data. Broken images are counted as by `CountBroken`, which has the same
    arguments.
    """

    def __init__(self, source: DataSource, max_broken: int | None = None, *, split: str = "the data"):
        self._source, self._split = CountBroken(source, max_broken, split=split), split

    @property
    def broken(self) -> set[int]:
        """The indices of the broken images found so far."""
        return self._source.broken

    @property
    def spec(self) -> DataSpec:
        """The description of the data set."""
        return self._source.spec

    @property
    def resize(self) -> str | None:
        """How images were downsampled: see `resize_of`."""
        return resize_of(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the classes of the given examples, as the source does."""
        return self._source.labels(indices)

    def encoded(self, index: int) -> EncodedExample | None:
        """Returns the example before it is decoded; None if the source has none or the image is known to be broken."""
        return self._source.encoded(index)

    def recount(self, indices: Iterable[int]) -> None:
        """Counts images that were found broken in another process. Raises `BadInput` if there are too many."""
        self._source.recount(indices)

    def __getitem__(self, index: int) -> Example:
        size = len(self)
        for j in ((index + step) % size for step in range(size)):
            if j in self.broken:
                continue
            try:
                return self._source[j]
            except BrokenImage:
                continue
        problem = f"all {size} images in {self._split} are broken"
        raise BadInput("data.max_broken", problem, "Repair the data")
