"""The published ways of measuring generated images, told apart by name, and the record of a measurement."""

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
    """All that two numbers must share to be compared, besides the extractor. Nothing here is a preference.

    **Arguments:**

    - `name`: what results are filed under.
    - `samples`: how many images are generated.
    - `call`: how many are drawn at once by the paper; where `labels` begins anew.
    - `labels`: see `labels_for`.
    - `reference`: the split whose statistics are compared with, all of it.
    - `reference_size`: how its images are brought to the sampled size. "squash": bilinear without antialiasing, which
      changes the aspect ratio (`SquashTransform`). "adm": halved by averages, then bicubic until the smaller side has
      that size, and the middle cut out (`ADMTransform`).
    - `reference_rows`: how many of its images precision and the others that need single images are counted among.
    - `resize`: how images are brought to the extractor's size, in words.
    - `rounding`: of samples in [-1, 1] to grey levels; see `to_uint8`.
    - `splits`: of the Inception score.
    - `port`: whose Inception-v3 it is to agree with (`umd_eqx.models.extractors.inception`).
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
"""`resize_bilinear`."""

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
"""What the reference does: ten calls of 1024 images, the validation set squashed to the sampled size."""

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
"""What the field does since ADM (Dhariwal and Nichol 2021, section 2.2), whose sampling script truncates as well.

Ours differs from that program in two ways: its reference statistics are a file, ours are computed from images that are
brought to size as its own data are; it compares neighbours in float16. Numbers are near the published ones, not equal
to them.
"""


def scale(protocol: Protocol, samples: int) -> Protocol:
    """The protocol with another number of samples and a name that says so: `umd10k@1024`.

    Few samples make a Frechet distance larger, so that the bare name would be wrong. Raises `BadInput` for less than 1.
    """
    if samples < 1:
        raise BadInput("--samples", f"{samples} is no number of images", "Use 1 or more")
    if samples == protocol.samples:
        return protocol
    return dataclasses.replace(protocol, name=f"{protocol.name.split('@')[0]}@{samples}", samples=samples)


def labels_for(protocol: Protocol, num_classes: int | None, seed: int = 0) -> Int[np.ndarray, "samples"]:
    """The label of each sample, 0 .. num_classes - 1; `NO_CLASS` for a network without labels (None).

    - "uniform": every label is drawn.
    - "each-class-then-random": in each call all classes in order, as often as they fit, and the rest is drawn. With
      1000 classes and calls of 1024 that is every class once and 24 at random, which is the reference.

    Raises `BadInput` for less than one class.
    """
    if num_classes is None:
        return np.full(protocol.samples, NO_CLASS)
    if num_classes < 1:
        raise BadInput("--run", "its model has no classes to draw labels from", "Use a run that knows labels")
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
    """Images in [-1, 1], and what lies beyond as its nearest end, to grey levels.

    "truncate" drops the fraction of (x + 1) 127.5, as the reference and ADM do: half a level darker on average.
    "round" goes to the nearest level, as EDM and DiT do.
    """
    levels = (images.astype(jnp.float32) + 1.0) * 127.5
    if rounding == "round":
        levels = levels + 0.5
    return jnp.clip(levels, 0.0, 255.0).astype(jnp.uint8)


def statistics_hash(statistics: Statistics) -> str:
    """SHA-256 of the bytes of reference statistics.

    It tells which numbers were compared with. Computed again elsewhere they may differ in their last digits, and the
    hash with them.
    """
    numbers = (np.asarray(part, "<f8") for part in (statistics.mean, statistics.covariance))
    count = np.asarray(statistics.count, "<i8")
    return sha256_of(part.tobytes() for part in (count, *numbers))


@dataclasses.dataclass(frozen=True)
class GenerationResult:
    """A measurement with everything that it depends on. Raises `ValueError` where it would call FID what is none.

    **Arguments:**

    - `protocol`: as measured; `scale` has changed its name where the count is another.
    - `reference_hash`, `reference_count`: of the reference statistics and the images in them.
    - `extractor`, `weights_hash`: what took the features.
    - `sampler`: its hyper-parameters, as JSON.
    - `guidance`: its hyper-parameters, as JSON; `{"scale": 1.0}` is none.
    - `precision`: what the network computed in, such as "float32".
    - `metrics`: what `measure` returns, and others by names of their own.
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
            raise ValueError(f"{', '.join(sorted(wrong))}: not what metrics of {self.extractor!r} are called")

    def to_json(self) -> dict[str, Any]:
        """All of it for `json.dumps`: the protocol's fields are spelled out under its name, and not looked up again."""
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
    """The record of a measurement, with the hashes taken. Raises `ValueError` as `GenerationResult` does."""
    hashes = statistics_hash(reference), sha256_of_tree(extractor)
    return GenerationResult(
        protocol, hashes[0], reference.count, extractor.name, hashes[1], sampler, guidance, precision, metrics
    )
