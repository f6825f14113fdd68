"""Reference statistics in a file: the features of real images, with everything that they depend on.

A file is accepted only for the images, the size, the resize, the protocol and the extractor that it was made with.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.hashes import sha256_of_tree
from umd_eqx.core.json_files import parse_json
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.data.prepared import resize_of
from umd_eqx.data.source import DataSource
from umd_eqx.eval.activations import Features
from umd_eqx.eval.distances import Statistics
from umd_eqx.eval.protocol import Protocol
from umd_eqx.latents.store import source_hash
from umd_eqx.models.extractors.base import AbstractExtractor

FORMAT = 1
_KEY = "umd_eqx.statistics"
_MAKE = "Make it again by experiments/reference_statistics.py"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What reference statistics depend on.

    - `data`: the name of the data set.
    - `resize`: how its images were downsampled when it was prepared (`resize_of`); None for original images.
    - `images`: the number of images, and a fingerprint of some of them (`source_hash`).
    - `reference`, `reference_size`, `port`, `rows`: those of the protocol (`Protocol.reference_rows`).
    - `size`: the side in pixels to which the images were resized by `reference_size`.
    - `extractor`, `weights`: the name of the extractor, and the hash of its weights.
    """

    data: str
    resize: str | None
    size: int
    reference: str
    reference_size: str
    port: str
    rows: int
    images: str
    extractor: str
    weights: str

    @classmethod
    def of(cls, source: DataSource, size: int, protocol: Protocol, extractor: AbstractExtractor) -> "Origin":
        """Returns the origin of the statistics of a split. Reads a few of its images."""
        spec = source.spec
        return cls(
            data=spec.name,
            resize=resize_of(source),
            size=size,
            reference=protocol.reference,
            reference_size=protocol.reference_size,
            port=protocol.port,
            rows=protocol.reference_rows,
            images=f"{len(source)} images, {source_hash(source)}",
            extractor=extractor.name,
            weights=sha256_of_tree(extractor)[:16],
        )


_TOLD = {
    "resize": "images downsampled by the resize {}",
    "size": "images of {} px",
    "reference": "the {} images",
    "reference_size": "images resized by {!r}",
    "port": "the {} port of Inception",
    "rows": "{} rows of features",
    "data": "images of {}",
    "images": "other images ({})",
    "extractor": "the extractor {}",
    "weights": "other weights of the extractor ({})",
}
"""How a difference is told, in the order in which differences are looked for."""


def save_statistics(path: str | os.PathLike[str], features: Features, origin: Origin) -> None:
    """Writes the statistics, and the rows of features that were kept, as a safetensors file.

    **Raises:** `OSError` if it cannot be written.
    """
    held = features.statistics
    tensors = {"mean": held.mean, "covariance": held.covariance, "features": features.features}
    about = {"format": FORMAT, "count": held.count, **dataclasses.asdict(origin)}
    write_tensors(path, tensors, {_KEY: json.dumps(about)})


def load_statistics(path: str | os.PathLike[str], expected: Origin, field: str = "statistics") -> Features:
    """Reads statistics that were made from what is expected. Class probabilities are not stored.

    **Raises:** `BadInput` naming `field` if the file cannot be read, holds no statistics, or was made from other
    images, by another resize, at another size, by another protocol or another extractor.
    """
    tensors, texts = read_tensors(path, field)
    about = _about(texts)
    if about is None:
        raise BadInput(field, f"{path} holds no reference statistics", _MAKE)
    if about.get("format") != FORMAT:
        raise BadInput(field, f"{path} is in another format", _MAKE)
    now = dataclasses.asdict(expected)
    for name, told in _TOLD.items():
        if about.get(name) != now[name]:
            there, asked = (_quoted(name, value) for value in (about.get(name), now[name]))
            problem = f"{path} was made from {told.format(there)}, and now it is {asked}"
            raise BadInput(field, problem, f"{_MAKE}, from the same images")
    try:
        mean, covariance, rows = (tensors[name] for name in ("mean", "covariance", "features"))
        sane = covariance.shape == (mean.size, mean.size) and rows.ndim == 2 and rows.shape[1] == mean.size
        sane = sane and all(np.isfinite(some).all() for some in (mean, covariance, rows))
        count = about["count"]
        if not (sane and type(count) is int and count >= 1):
            raise ValueError
    except (KeyError, ValueError) as error:
        raise BadInput(field, f"{path} is damaged", _MAKE) from error
    statistics = Statistics(count, mean.astype(np.float64), covariance.astype(np.float64))
    return Features(statistics, rows.astype(np.float32), np.zeros((len(rows), 0), np.float32))


def _about(texts: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        found = parse_json(texts[_KEY].encode())
        return found if isinstance(found, dict) else None
    except (KeyError, ValueError):
        return None


def _quoted(name: str, value: Any) -> Any:
    return ("none" if value is None else repr(value)) if name == "resize" else value
