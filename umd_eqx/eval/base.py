"""What an evaluator is, and what it is given."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from umd_eqx.data.loader import evaluation_batches
from umd_eqx.data.source import DataSource
from umd_eqx.data.transforms import EvalTransform, FewShotTransform, SquashTransform
from umd_eqx.errors import BadInput
from umd_eqx.models import AbstractModel
from umd_eqx.paths import AbstractPath
from umd_eqx.sharding import batch_sharding
from umd_eqx.types import Batch, Report

Evaluate = Callable[[AbstractModel, PRNGKeyArray], Report]
"""A pure function of the model and a key."""


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """What an evaluation may look at: both splits, the path, and how images are brought to the network."""

    train: DataSource
    test: DataSource
    path: AbstractPath
    size: int
    batch_size: int
    mesh: Mesh
    threads: int = 2
    """That read images, each a batch of its own."""
    say: Callable[[str], None] = print
    """Told what a person should know, such as weights that are missing."""
    phase: Callable[[str], None] = lambda _: None
    """Told what is going on now, where that takes long enough to be waited for."""

    @property
    def native(self) -> bool:
        """Whether every image already has the size of the network."""
        spec = self.train.spec
        return spec.height == spec.width == self.size

    def batches(
        self,
        split: Literal["train", "test"],
        indices: Int[np.ndarray, "count"],
        *,
        crop: Literal["evaluation", "fewshot", "squash"] = "evaluation",
    ) -> Iterator[Batch]:
        """The images of a split by their indices, in order, as whole batches on the devices.

        The last one is filled up with rows that are not `valid`. `crop` says how images are brought to size: as the
        reference does in evaluations, for its few-shot probe, or for FID. Raises whatever the source raises but
        `BrokenImage`, such as `BadInput` for too many of these.
        """
        source = self.train if split == "train" else self.test
        transforms = {
            "evaluation": EvalTransform(self.size),
            "fewshot": FewShotTransform(self.size, self.native),
            "squash": SquashTransform(self.size),
        }
        transform = transforms[crop]
        for batch in evaluation_batches(source, transform, self.batch_size, indices, threads=self.threads):
            yield jax.device_put(batch, batch_sharding(self.mesh))


@dataclasses.dataclass(frozen=True)
class AbstractEvaluator(abc.ABC):
    """The hyper-parameters of a measurement.

    `every` is the number of steps between two of them (it is also made at the end of a run), `weights` which weights
    are measured: "ema" means the average where there is one.
    """

    every: int
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"]
    """Which weights: raw, or their average where one is kept."""

    def validate(self, num_patches: int | None = None, field: str = "--eval") -> None:
        """Raises `BadInput` for hyper-parameters that cannot work. By default there are none.

        `num_patches` are those of an image, None where they are not known; `field` is the flag without its last part.
        """
        del num_patches, field

    @abc.abstractmethod
    def build(self, context: EvalContext) -> Evaluate:
        """The measurement itself. Raises `BadInput` where it cannot be made with these data."""

    @property
    def untrained(self) -> bool:
        """Whether the network's first weights are measured once too, as the line to beat."""
        return False


def require(evaluator: AbstractEvaluator, field: str, works: Mapping[str, bool], way_out: str) -> None:
    """Raises `BadInput` for the first hyper-parameter that cannot work: by their names, True where they can."""
    for name, fine in works.items():
        if not fine:
            raise BadInput(f"{field}.{name.replace('_', '-')}", f"{getattr(evaluator, name)} cannot work", way_out)


def spread(count: int, size: int) -> Int[np.ndarray, "count"]:
    """`count` indices (or all) evenly over a data set of `size` images, whatever order it is stored in."""
    count = min(count, size)
    return np.arange(count) * size // max(count, 1)


def batch_rows(indices: Int[np.ndarray, "count"], batch_size: int) -> list[Int[np.ndarray, "b"]]:
    """The indices of each batch of `EvalContext.batches`; what fills up the last one repeats its last image."""
    batches = -(-len(indices) // batch_size)
    padded = np.concatenate([indices, np.repeat(indices[-1:], batches * batch_size - len(indices))])
    return np.split(padded, batches)


def image_keys(key: PRNGKeyArray, indices: Int[np.ndarray, "b"]) -> Key[Array, "b"]:
    """A key for each image by its index, so that its noise does not depend on the batch it is in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def weighted_mean(values: Float[np.ndarray, "count ..."], valid: np.ndarray) -> Float[np.ndarray, "..."]:
    """The mean over the rows that are valid. NaN where none is."""
    kept = np.asarray(values, np.float64)[np.asarray(valid, bool)]
    return np.asarray(kept.mean(axis=0)) if len(kept) else np.full(kept.shape[1:], np.nan)
