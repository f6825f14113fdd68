"""The published protocols for evaluating generated images, and the record of a result."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from umd_eqx.core.errors import BadInput
from umd_eqx.core.hashes import sha256_of, sha256_of_tree
from umd_eqx.core.types import NO_CLASS
from umd_eqx.eval.distances import Statistics
from umd_eqx.eval.measure import metric_names
from umd_eqx.models.extractors.base import AbstractExtractor
from umd_eqx.models.extractors.inception import Port

Rounding = Literal["truncate", "round"]
LabelSampling = Literal["each-class-then-random", "uniform"]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation protocol: all settings, besides the extractor, that two results must share to be comparable.

    **Arguments:**

    - `name`: the name that results are reported under.
    - `samples`: number of generated images.
    - `call`: number of images that the paper draws at once; the pattern of `labels` restarts after each call.
    - `labels`: see `labels_for`.
    - `reference`: the split whose statistics the samples are compared with; all its images are used.
    - `reference_size`: how its images are resized to the sampled size. "squash": bilinear without antialiasing, which
      changes the aspect ratio (`SquashTransform`). "adm": repeated halving by box averages, then bicubic until the
      smaller side has that size, and a centre crop (`ADMTransform`).
    - `reference_rows`: number of its images for precision and the other metrics that use individual images.
    - `resize`: description of how images are resized for the extractor.
    - `rounding`: how samples in [-1, 1] are converted to pixel values; see `to_uint8`.
    - `splits`: number of splits of the Inception score.
    - `port`: the implementation of Inception-v3 to agree with (`umd_eqx.models.extractors.inception`).
    """

    name: str
    samples: int
    call: int
    labels: LabelSampling
    reference: Literal["validation", "train"]
    reference_size: Literal["squash", "adm"]
    reference_rows: int
    resize: str
    rounding: Rounding
    splits: int
    port: Port = "pytorch"


HALF_PIXEL = "bilinear, half-pixel centres, no antialias"
"""Description of `resize_bilinear`."""

UMD10K = Protocol(
    name="umd10k",
    samples=10_240,
    call=1024,
    labels="each-class-then-random",
    reference="validation",
    reference_size="squash",
    reference_rows=10_240,
    resize=HALF_PIXEL,
    rounding="truncate",
    splits=10,
)
"""The reference's protocol: ten calls of 1024 images, and the validation set squashed to the sampled size."""

UMD50K = dataclasses.replace(UMD10K, name="umd50k", samples=50_000)
"""The benchmark of the reference: its protocol with 50,000 images (its code draws whole calls, 50,176)."""

ADM50K = Protocol(
    name="adm50k",
    samples=50_000,
    call=50_000,
    labels="uniform",
    reference="train",
    reference_size="adm",
    reference_rows=10_000,
    resize="bilinear, corners of TensorFlow 1, no antialias",
    rounding="truncate",
    splits=10,
    port="tensorflow",
)
"""The usual protocol since ADM (Dhariwal and Nichol 2021, section 2.2), whose sampling script also truncates.

This implementation differs from ADM's in two ways: ADM's reference statistics are a file, and are computed here from
images that are resized like its data; and ADM compares neighbours in float16. Results are close to the published ones
but not equal.
"""


def scale(protocol: Protocol, samples: int) -> Protocol:
    """Returns the protocol with another number of samples, and a name that includes it: `umd10k@1024`.

    Frechet distances are larger for fewer samples and must not be confused with those of the full protocol. Raises
    `BadInput` for less than 1 sample.
    """
    if samples < 1:
        raise BadInput("samples", f"{samples} is too small", "Use 1 or more")
    if samples == protocol.samples:
        return protocol
    return dataclasses.replace(protocol, name=f"{protocol.name.split('@')[0]}@{samples}", samples=samples)


def labels_for(protocol: Protocol, num_classes: int | None, seed: int = 0) -> Int[np.ndarray, "samples"]:
    """Returns the label of each sample, 0 .. num_classes - 1, or `NO_CLASS` for a network without labels (None).

    - "uniform": every label is drawn at random.
    - "each-class-then-random": each call has all classes in order, as often as they fit, and random labels for the
      rest. With 1000 classes and calls of 1024, this is every class once and 24 at random, as in the reference.

    Raises `BadInput` for less than one class.
    """
    if num_classes is None:
        return np.full(protocol.samples, NO_CLASS)
    if num_classes < 1:
        raise BadInput("num_classes", f"{num_classes} is too small", "Use 1 or more, or None for no labels")
    rng = np.random.default_rng(seed)
    if protocol.labels == "uniform":
        return rng.integers(0, num_classes, protocol.samples)
    parts = []
    for start in range(0, protocol.samples, protocol.call):
        count = min(protocol.call, protocol.samples - start)
        rounds, drawn = divmod(count, num_classes)
        parts += [np.tile(np.arange(num_classes), rounds), rng.integers(0, num_classes, drawn)]
    return np.concatenate(parts)


def to_uint8(images: Float[Array, "*shape"], rounding: Rounding) -> UInt8[Array, "*shape"]:
    """Converts images in [-1, 1] to pixel values 0-255; values outside of the range are clipped.

    "truncate" drops the fractional part of (x + 1) 127.5, as the reference and ADM do: half a value darker on average.
    "round" rounds to the nearest value, as EDM and DiT do.
    """
    levels = (images.astype(jnp.float32) + 1.0) * 127.5
    if rounding == "round":
        levels = levels + 0.5
    return jnp.clip(levels, 0.0, 255.0).astype(jnp.uint8)


def statistics_hash(statistics: Statistics) -> str:
    """Returns the SHA-256 of the bytes of reference statistics, which identifies them in results.

    Statistics that are recomputed on another machine may differ in their last digits, and then have another hash.
    """
    numbers = (np.asarray(part, "<f8") for part in (statistics.mean, statistics.covariance))
    count = np.asarray(statistics.count, "<i8")
    return sha256_of(part.tobytes() for part in (count, *numbers))


@dataclasses.dataclass(frozen=True)
class GenerationResult:
    """A result with everything that it depends on. Raises `ValueError` for FID and the like of another extractor.

    **Arguments:**

    - `protocol`: the protocol, as renamed by `scale` if the number of samples differs.
    - `reference_hash`, `reference_count`: hash of the reference statistics, and the number of their images.
    - `extractor`, `weights_hash`: name of the extractor, and the hash of its weights.
    - `sampler`: its hyper-parameters, as JSON.
    - `guidance`: its hyper-parameters, as JSON; `{"scale": 1.0}` is no guidance.
    - `precision`: the data type that the network computes in, such as "float32".
    - `metrics`: the output of `measure`, and possibly others.
    """

    protocol: Protocol
    reference_hash: str
    reference_count: int
    extractor: str
    weights_hash: str
    sampler: Mapping[str, Any]
    guidance: Mapping[str, Any]
    precision: str
    metrics: Mapping[str, float]

    def __post_init__(self):
        wrong = set(metric_names("inception")) & set(self.metrics) - set(metric_names(self.extractor))
        if wrong:
            raise ValueError(f"{', '.join(sorted(wrong))}: not valid names for metrics of {self.extractor!r}")

    def to_json(self) -> dict[str, Any]:
        """Returns the record for `json.dumps`, with all fields of the protocol besides its name."""
        return {
            "protocol": dataclasses.asdict(self.protocol),
            "reference": {"sha256": self.reference_hash, "count": self.reference_count},
            "extractor": {"name": self.extractor, "sha256": self.weights_hash},
            "sampler": dict(self.sampler),
            "guidance": dict(self.guidance),
            "precision": self.precision,
            "metrics": dict(self.metrics),
        }


def generation_result(
    protocol: Protocol,
    reference: Statistics,
    extractor: AbstractExtractor,
    metrics: Mapping[str, float],
    *,
    sampler: Mapping[str, Any],
    guidance: Mapping[str, Any],
    precision: str,
) -> GenerationResult:
    """Returns the record of a result, and computes its hashes. Raises `ValueError` as `GenerationResult` does."""
    hashes = statistics_hash(reference), sha256_of_tree(extractor)
    return GenerationResult(
        protocol, hashes[0], reference.count, extractor.name, hashes[1], sampler, guidance, precision, metrics
    )
