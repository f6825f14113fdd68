"""Generated images beside real ones: the one way in which a run, the command and the benchmarks measure them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from umd_eqx.eval.activations import Features, activations
from umd_eqx.eval.base import EvalContext, decoded
from umd_eqx.eval.distances import frechet_distance
from umd_eqx.eval.measure import measure
from umd_eqx.eval.protocol import Protocol, labels_for, to_uint8
from umd_eqx.models.extractors.base import AbstractExtractor

Draw = Callable[[Int[np.ndarray, "n"]], Float[np.ndarray, "n h w c"]]
"""From a label for each sample to the samples, in the same order."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What generated images are compared with: real images, as a protocol brings them to size, in an extractor's eyes.

    **Arguments:**

    - `context`: the images, and the tokenizer that decodes what is sampled.
    - `protocol`: how many samples there are, of which labels, and against which split.
    - `extractor`: takes the features.
    """

    context: EvalContext
    protocol: Protocol
    extractor: AbstractExtractor

    @functools.cached_property
    def real(self) -> Features:
        """Features of all real images of the protocol's split, taken when they are first asked for.

        Rows are kept of a random part only, `protocol.reference_rows`.
        """
        split = "test" if self.protocol.reference == "validation" else "train"
        count = len(self.context.test if split == "test" else self.context.train)
        say = functools.partial(say_progress, self.context.phase, "features of real images")
        images = real_images(self.context, self.protocol, split, count)
        keep = self.protocol.reference_rows
        return activations(self.extractor, images, self.context.mesh, lambda done: say(done, count), keep=keep)

    def floor(self) -> float:
        """The Frechet distance of as many real images of the other split: what a perfect generator would come to."""
        split = "train" if self.protocol.reference == "validation" else "test"
        images = real_images(self.context, self.protocol, split, self.protocol.samples)
        return frechet_distance(self.real.statistics, activations(self.extractor, images, self.context.mesh).statistics)


def measure_generation(
    draw: Draw, reference: ReferenceStatistics, classes: int | None, *, seed: int = 0
) -> dict[str, float]:
    """Samples as a protocol says, and compares the images with real ones.

    **Arguments:**

    - `draw`: from a label for each sample to the samples: images in [-1, 1], or latents of the context's tokenizer.
    - `reference`: what they are compared with.
    - `classes`: that the network knows; None for a network without labels.
    - `seed`: of the labels.

    **Returns:** every metric by its name, and `recognised` where the extractor knows the classes; of samples that are
    not all finite their share `not_finite` alone: see `score`.

    **Raises:** `BadInput` as `labels_for` and `measure` do.
    """
    labels = labels_for(reference.protocol, classes, seed)
    return score(draw(labels), labels, reference, classes=classes)


def real_images(
    context: EvalContext, protocol: Protocol, split: Literal["train", "test"], count: int
) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """Some images of a split, or all, in a random order that is always the same, as grey levels."""
    order = np.random.default_rng(0).permutation(len(context.test if split == "test" else context.train))
    for batch in context.images(split, order[:count], crop=protocol.reference_size):
        # They were grey levels before, so that the nearest is the one it was.
        yield np.asarray(to_uint8(jnp.asarray(batch.image), "round"))[np.asarray(batch.valid)]


def score(
    samples: Float[np.ndarray, "n lh lw lc"],
    labels: Int[np.ndarray, "n"],
    reference: ReferenceStatistics,
    *,
    classes: int | None,
) -> dict[str, float]:
    """All metrics of samples by their names, and `recognised` where the extractor knows the classes.

    Samples are images in [-1, 1], or latents of the context's tokenizer, which are decoded a batch at a time. Where
    some are not finite, their share, `not_finite`, is all: as images they would be black, and count.
    """
    broken = ~np.isfinite(samples).all(axis=(1, 2, 3))
    if broken.any():
        return {"not_finite": float(np.mean(broken))}
    context, protocol, extractor = reference.context, reference.protocol, reference.extractor
    images = decoded(context.tokenizer_or_identity, samples, context.batch_size, context.mesh)
    levels = (np.asarray(to_uint8(jnp.asarray(some), protocol.rounding)) for some in images)
    say = functools.partial(say_progress, context.phase, "features of samples")
    fake = activations(extractor, levels, context.mesh, lambda done: say(done, len(samples)))
    found = measure(reference.real, fake, extractor.name, splits=protocol.splits)
    if extractor.name == context.train.spec.name.split("_")[0] and classes == fake.probabilities.shape[1]:
        found["recognised"] = float(np.mean(np.argmax(fake.probabilities, axis=1) == labels))
    return found


def say_progress(phase: Callable[[str], None], what: str, done: int, total: int) -> None:
    """Tells how many of how many are done, behind what is going on."""
    phase(f"{what}: {done:,}/{total:,}")
