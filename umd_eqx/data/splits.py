"""Names of splits and of parts of them, in the syntax of TFDS, and names that stand for one another."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

import tensorflow_datasets as tfds

from umd_eqx.core.errors import BadInput

HELD_OUT = ("test", "val", "validation")
"""Names of the split for evaluation. Each means whichever of them a data set has."""


def existing_split(split: str, known: Collection[str]) -> str:
    """Replaces the names `test`, `val` and `validation` in a split by the one that a data set has.

    **Arguments:** a split, a part of one or a sum of them (`train[:99%]+test`); the names of the existing splits.

    **Returns:** the split with each of these names that does not exist replaced by the first of `HELD_OUT` that does.
    """
    there = next((name for name in HELD_OUT if name in known), None)

    def replaced(found: re.Match[str]) -> str:
        name = found[0]
        return name if there is None or name in known or name not in HELD_OUT else there

    return re.sub(r"(?<![^+\s])\w+", replaced, split)


def split_parts(
    split: str, sizes: Mapping[str, Callable[[], int]], *, field: str, name: str
) -> list[tuple[str, slice]]:
    """Returns the ranges of images that make up a split, or a part of one such as `train[:99%]`.

    **Arguments:**

    - `split`: the split, in the syntax of TFDS.
    - `sizes`: for each existing split, a function that counts its images; called only for the splits that are named.
    - `field`: the field named in errors.
    - `name`: the data set in errors.

    **Raises:** `BadInput` naming `field` if the split is unknown or empty.
    """
    known = f"Splits of {name}: {', '.join(sizes)}"
    try:
        specification = tfds.core.ReadInstruction.from_spec(existing_split(split, sizes))
        instructions = specification.to_absolute(cast(Any, _SplitInfos(sizes)))
    except (ValueError, KeyError, NotImplementedError) as error:
        if isinstance(error, BadInput):
            raise
        hint = f"{known}; parts of them are written train[:99%] or train[1000:]."
        raise BadInput(field, f"'{split}' is not a split or a part of one", hint) from error
    parts = [(each.splitname, slice(each.from_, each.to)) for each in instructions]
    if not any(len(range(sizes[name]())[rows]) for name, rows in parts):
        raise BadInput(field, f"'{split}' has no images", f"Use a larger part. {known}.")
    return parts


class _SplitInfos(Mapping[str, tfds.core.SplitInfo]):
    """The sizes from which TFDS computes parts of splits; each is counted when it is accessed."""

    def __init__(self, sizes: Mapping[str, Callable[[], int]]):
        self._sizes = sizes

    def __getitem__(self, split: str) -> tfds.core.SplitInfo:
        return tfds.core.SplitInfo(name=split, shard_lengths=[self._sizes[split]()], num_bytes=0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)
