"""Metrics of generated images against real ones, as used by runs, `experiments/evaluate.py` and the benchmarks."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from umd_eqx.core.processes import to_host
from umd_eqx.eval.activations import Features, activations
from umd_eqx.eval.base import EvalContext, decoded
from umd_eqx.eval.distances import frechet_distance
from umd_eqx.eval.measure import measure
from umd_eqx.eval.protocol import Protocol, labels_for, to_uint8
from umd_eqx.eval.statistics_file import Origin, load_statistics
from umd_eqx.models.extractors.base import AbstractExtractor

SampleFunction = Callable[[Int[np.ndarray, "n"]], Float[np.ndarray, "n h w c"]]
"""Generates samples from labels, one for each, in the same order."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """The reference that generated images are compared with: features of real images, as a protocol prescribes.

    **Arguments:**

    - `context`: the data, and the tokenizer that decodes samples.
    - `protocol`: the number of samples, their labels, and the reference split and size.
    - `extractor`: the network that computes the features.
    - `file`: a file of statistics of these images (`umd_eqx.eval.statistics_file`); None computes them.
    - `field`: the field that named the file.
    """

    context: EvalContext
    protocol: Protocol
    extractor: AbstractExtractor
    file: str | None = None
    field: str = "statistics"

    @property
    def origin(self) -> Origin:
        """What the statistics depend on."""
        source = self.context.test if self.protocol.reference == "validation" else self.context.train
        return Origin.of(source, self.context.size, self.protocol, self.extractor)

    @functools.cached_property
    def real(self) -> Features:
        """The features of all real images of the protocol's split, computed or read on first access.

        Rows are kept for a random subset of `protocol.reference_rows` images only. Raises `BadInput` naming `field` if
        the file was made from anything else.
        """
        if self.file is not None:
            return load_statistics(self.file, self.origin, self.field)
        split = "test" if self.protocol.reference == "validation" else "train"
        count = len(self.context.test if split == "test" else self.context.train)
        progress = functools.partial(report_progress, self.context.phase, "features of real images")
        images = real_images(self.context, self.protocol, split, count)
        keep = self.protocol.reference_rows
        return activations(self.extractor, images, self.context.mesh, lambda done: progress(done, count), keep=keep)

    def baseline(self) -> float:
        """Returns the Frechet distance of as many real images of the other split: that of a perfect generator."""
        split = "train" if self.protocol.reference == "validation" else "test"
        images = real_images(self.context, self.protocol, split, self.protocol.samples)
        return frechet_distance(self.real.statistics, activations(self.extractor, images, self.context.mesh).statistics)


def measure_generation(
    sample: SampleFunction, reference: ReferenceStatistics, classes: int | None, *, seed: int = 0
) -> dict[str, float]:
    """Generates samples for the labels of the protocol, and compares them with real images.

    **Arguments:**

    - `sample`: generates a sample for each label: images in [-1, 1], or latents of the context's tokenizer.
    - `reference`: the real images that they are compared with.
    - `classes`: the number of classes of the network; None for a network without labels.
    - `seed`: the seed of the labels.

    **Returns:** every metric by its name, and `recognised` if the extractor classifies the same classes. If some
    samples are not finite, only their fraction, `not_finite`: see `score`.

    **Raises:** `BadInput` as `labels_for` and `measure` do.
    """
    labels = labels_for(reference.protocol, classes, seed)
    return score(sample(labels), labels, reference, classes=classes)


def real_images(
    context: EvalContext, protocol: Protocol, split: Literal["train", "test"], count: int
) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """Yields `count` images of a split as uint8 pixel values, in a random order with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(context.test if split == "test" else context.train))
    for batch in context.images(split, order[:count], crop=protocol.reference_size):
        # They were uint8 originally: rounding restores their values.
        yield to_host(to_uint8(jnp.asarray(batch.image), "round"))[to_host(batch.valid)]


def score(
    samples: Float[np.ndarray, "n lh lw lc"],
    labels: Int[np.ndarray, "n"],
    reference: ReferenceStatistics,
    *,
    classes: int | None,
) -> dict[str, float]:
    """Returns all metrics of samples by name, and `recognised` if the extractor classifies the same classes.

    Samples are images in [-1, 1], or latents of the context's tokenizer, which are decoded batch by batch. If some are
    not finite, only their fraction, `not_finite`, is returned: as uint8 they would be counted as black images.
    """
    broken = ~np.isfinite(samples).all(axis=(1, 2, 3))
    if broken.any():
        return {"not_finite": float(np.mean(broken))}
    context, protocol, extractor = reference.context, reference.protocol, reference.extractor
    images = decoded(context.tokenizer_or_identity, samples, context.batch_size, context.mesh)
    levels = (np.asarray(to_uint8(jnp.asarray(some), protocol.rounding)) for some in images)
    progress = functools.partial(report_progress, context.phase, "features of samples")
    fake = activations(extractor, levels, context.mesh, lambda done: progress(done, len(samples)))
    found = measure(reference.real, fake, extractor.name, splits=protocol.splits)
    if extractor.trained_on == context.train.spec.name and classes == fake.probabilities.shape[1]:
        found["recognised"] = float(np.mean(np.argmax(fake.probabilities, axis=1) == labels))
    return found


def report_progress(phase: Callable[[str], None], what: str, done: int, total: int) -> None:
    """Reports progress to `phase`, such as "features of samples: 64/1,024"."""
    phase(f"{what}: {done:,}/{total:,}")
