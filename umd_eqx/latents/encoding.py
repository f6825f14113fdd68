"""Encoding of a data set to stored latents, shard by shard; an interrupted run resumes at the first missing shard."""

import dataclasses
import errno
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import replacing, save_json, write_atomically
from umd_eqx.core.json_files import read_json
from umd_eqx.core.processes import from_first, to_first
from umd_eqx.core.sharding import batch_sharding, chunked_vmap, place, replicated, round_up_to_devices
from umd_eqx.core.types import DataSpec
from umd_eqx.data.loader import evaluation_batches
from umd_eqx.data.source import DataSource, Example
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.latents.checksums import crc32_of_file, mismatched
from umd_eqx.latents.store import FORMAT, MANIFEST, Manifest, Settings, augmented, pack_record, require_format
from umd_eqx.latents.stream import join_moments
from umd_eqx.models.tokenizers.base import AbstractTokenizer

SETTINGS = "settings.json"
"""The file with the settings of the latents in a folder, written before any of them."""

WRITER_OPTIONS = "group_size:1"
"""One record per chunk, as written by TFDS, for random access."""

FIELDS = {
    "name": "data.source.name",
    "split": "data.split",
    "source": "data.source.dir",
    "tokenizer": "tokenizer",
    "shift": "tokenizer",
    "scale": "tokenizer",
    "shape": "tokenizer",
    "size": "data.size",
    "area_min": "data.area_min",
    "flip": "data.flip",
    "seed": "seed",
    "views": "views",
    "mode_only": "mode_only",
    "dtype": "half",
    "images": "limit",
    "per_shard": "per_shard",
}
"""The field of `encode_latents.py` that sets each setting."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Callbacks during encoding: `update` receives the number of encoded images, `stop` returns whether to stop."""

    update: Callable[[int], None] = lambda done: None
    stop: Callable[[], bool] = lambda: False


def encode(
    source: DataSource,
    tokenizer: AbstractTokenizer,
    settings: Settings,
    folder: Path,
    *,
    mesh: Mesh,
    batch_size: int = 256,
    threads: int = 2,
    missing: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Manifest | None:
    """Writes the latents described by `settings` to a folder, and their manifest once all are complete.

    Existing shards are kept. However often the encoding is interrupted and resumed, the result is identical byte for
    byte to that of an uninterrupted run on the same number of devices. Several processes (`core.processes.join`) call
    this with the same arguments; each encodes its part of the missing shards, and all return when the last one has.

    **Arguments:**

    - `source`: the images; wrap it in `SkipBroken` if some may be broken.
    - `tokenizer`: the tokenizer with fingerprint `settings.tokenizer`.
    - `folder`: an empty or new folder, or one that was begun with the same settings.
    - `mesh`: the devices that share each batch, those of this process.
    - `batch_size`: the approximate number of views in a batch, which holds all views of its images.
    - `threads`: the number of threads that read and augment images.
    - `missing`: the result of `prepare` for this folder, if it was called already.
    - `progress`: callbacks that are called after each batch. The shards of other processes count as encoded.

    **Returns:** the manifest, or None if stopped early by `progress.stop`.

    **Raises:** `BadInput` as `prepare` does. Errors of the source propagate.
    """
    progress = Progress() if progress is None else progress
    missing = share(from_first(lambda: prepare(folder, settings)) if missing is None else missing)
    done = settings.images - sum(len(settings.shards[shard]) for shard in missing)
    tokenizer = place(tokenizer, replicated(mesh))
    views = _Views(source, settings)
    size = round_up_to_devices(min(batch_size // settings.views, settings.images), mesh)
    for shard in missing:
        labels: list[np.ndarray] = []
        moments: list[np.ndarray] = []
        for some_labels, some_moments in _encoded(
            tokenizer, views, settings.shards[shard], settings, size, mesh, threads
        ):
            labels.append(some_labels)
            moments.append(some_moments)
            done += len(some_labels)
            progress.update(done)
            if progress.stop():
                return None
        _write_shard(folder, settings, shard, np.concatenate(labels), np.concatenate(moments))
    to_first(f"encoded/{folder}", None, lambda _: _complete(folder, settings, source.spec))
    return Manifest.read(folder, "out")


def share(shards: Sequence[int]) -> Sequence[int]:
    """Returns those of the missing shards that this process encodes."""
    return shards[jax.process_index() :: jax.process_count()]


def prepare(folder: Path, settings: Settings) -> list[int]:
    """Prepares a folder for these latents, or verifies that it was; returns the shards that are missing or incomplete.

    Every shard is read, and compared with its checksum. Raises `BadInput`, naming the field that differs from the
    folder's settings, or `out` if the folder holds other files or its disk has too little space.
    """
    path, text = folder / SETTINGS, json.dumps({"format": FORMAT, **dataclasses.asdict(settings)}, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    if new:
        foreign = [entry.name for entry in folder.iterdir() if entry.name != ".lock" and entry.suffix != ".tmp"]
        if foreign:
            problem = f"{folder} holds {min(foreign)!r} but no latents"
            raise BadInput("out", problem, "Choose an empty or a new folder")
    else:
        _require_same(path, json.loads(text))
    missing = _missing(folder, settings)
    images = sum(len(settings.shards[shard]) for shard in missing)
    need = images * (4 + math.prod(settings.record_shape) * np.dtype(settings.dtype).itemsize)
    free = shutil.disk_usage(folder).free
    if free < need:
        problem = f"{folder} has {free / 1e6:,.0f} MB free, but the missing latents need up to {need / 1e6:,.0f} MB"
        hint = "Free some space, or choose another disk, fewer `views`, `mode_only` or `half`"
        raise BadInput("out", problem, hint)
    if new:
        write_atomically(path, text.encode())
    return missing


def _missing(folder: Path, settings: Settings) -> list[int]:
    sums = {shard: _sums(folder, settings, shard) for shard in range(len(settings.shards))}
    there = {shard: found["crc32"] for shard, found in sums.items() if found is not None}
    damaged = mismatched([folder / settings.shard_name(shard) for shard in there], [*there.values()])
    return sorted({*sums} - {*there} | {[*there][i] for i in damaged})


def _require_same(path: Path, now: dict[str, Any]) -> None:
    try:
        there = read_json(path)
        require_format(there.get("format", 1), path, "out")
        differing = [name for name in now if there.get(name) != now[name]]
    except BadInput:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadInput("out", f"{path} cannot be read", "Choose another folder") from error
    for name in differing:
        problem = f"{path.parent} was begun with {name} {there.get(name)}, and now it is {now[name]}"
        raise BadInput(FIELDS[name], problem, "Use the old value to resume, or another `out`")


class _Views:
    """A data source for `evaluation_batches` that stacks all views of each image vertically."""

    def __init__(self, source: DataSource, settings: Settings):
        self._source, self._settings = source, settings
        self._transform = TrainTransform(settings.size, settings.area_min, settings.flip)

    @property
    def spec(self) -> DataSpec:
        size = self._settings.size
        return self._source.spec._replace(height=size * self._settings.views, width=size)

    def __len__(self) -> int:
        return self._settings.images

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        return self._source.labels(indices)

    def __getitem__(self, index: int) -> Example:
        example, settings = self._source[index], self._settings
        each = [augmented(example["image"], index, v, self._transform, settings.seed) for v in range(settings.views)]
        return {"image": np.concatenate(each), "label": example["label"]}


def _encoded(
    tokenizer: AbstractTokenizer,
    views: _Views,
    images: range,
    settings: Settings,
    size: int,
    mesh: Mesh,
    threads: int,
) -> Iterator[tuple[Int[np.ndarray, "n"], Float32[np.ndarray, "n views h w stored"]]]:
    """Yields labels and moments of some images, in batches of `size` images."""
    for batch in evaluation_batches(views, _to_float32, size, np.asarray(images), threads=threads):
        pixels = batch.image.reshape(-1, settings.size, settings.size, batch.image.shape[-1])
        moments = _moments(tokenizer, jax.device_put(pixels, batch_sharding(mesh)), mesh, settings.mode_only)
        records = np.asarray(moments).reshape(-1, *settings.record_shape)
        yield np.asarray(batch.label)[batch.valid], records[batch.valid]


def _to_float32(image: np.ndarray) -> Float32[np.ndarray, "rows size c"]:
    # The views are already transformed.
    return np.asarray(image, np.float32)


@eqx.filter_jit
def _moments(
    tokenizer: AbstractTokenizer, images: Float[Array, "b h w c"], mesh: Mesh, mode_only: bool
) -> Float[Array, "b lh lw stored"]:
    return chunked_vmap(lambda image: join_moments(tokenizer.encode_raw(image), mode_only=mode_only), images, mesh)


def _write_shard(
    folder: Path,
    settings: Settings,
    shard: int,
    labels: Int[np.ndarray, "n"],
    moments: Float32[np.ndarray, "n views h w stored"],
) -> None:
    """Writes a shard, and then beside it its length, checksum and sums, without which a shard is not complete."""
    path = folder / settings.shard_name(shard)
    rows = zip(settings.shards[shard], labels, moments, strict=True)
    records = [pack_record(int(label), one, settings.dtype) for _, label, one in rows]
    # The folder is locked, and a shard that a killed process leaves may be large: it is overwritten.
    with replacing(path, suffix=".tmp") as unfinished:
        try:
            writer = array_record_module.ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
            for record in records:
                writer.write(record)
            writer.close()
        except RuntimeError as error:  # raised by array_record for a full disk
            number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
            raise OSError(number, os.strerror(number), str(unfinished)) from error
    channels = settings.shape[2]
    mean, logvar = moments[..., :channels].astype(np.float64), moments[..., channels:].astype(np.float64)
    square = mean**2 + (np.exp(logvar) if logvar.size else 0.0)
    axes = tuple(range(4))
    sums = {
        "shard": shard,
        "bytes": path.stat().st_size,
        "crc32": crc32_of_file(path),
        "count": mean.size // channels,
        "sum": mean.sum(axis=axes).tolist(),
        "square": square.sum(axis=axes).tolist(),
    }
    save_json(_sums_path(folder, settings, shard), sums)


def _complete(folder: Path, settings: Settings, spec: DataSpec) -> None:
    parts = [part for shard in range(len(settings.shards)) if (part := _sums(folder, settings, shard)) is not None]
    assert len(parts) == len(settings.shards), "a shard vanished while others were written"
    count = sum(part["count"] for part in parts)
    mean, square = (np.sum([part[name] for part in parts], axis=0) / count for name in ("sum", "square"))
    deviation = functools.partial(np.sqrt, dtype=np.float64)
    manifest = Manifest(
        settings,
        crc32=tuple(part["crc32"] for part in parts),
        mean=float(mean.mean()),
        std=float(deviation(max(square.mean() - mean.mean() ** 2, 0.0))),
        channel_mean=tuple(mean.tolist()),
        channel_std=tuple(deviation(np.maximum(square - mean**2, 0.0)).tolist()),
        num_classes=spec.num_classes,
        channels=spec.channels,
    )
    write_atomically(folder / MANIFEST, manifest.text().encode())


def _sums_path(folder: Path, settings: Settings, shard: int) -> Path:
    return (folder / settings.shard_name(shard)).with_suffix(".json")


def _sums(folder: Path, settings: Settings, shard: int) -> dict[str, Any] | None:
    """Returns the sums of a shard, or None if they are missing, are of another shard, or its length has changed."""
    try:
        sums = read_json(_sums_path(folder, settings, shard))
        same = sums.get("shard", shard) == shard and isinstance(sums["crc32"], int)  # older versions name no shard
        return sums if same and (folder / settings.shard_name(shard)).stat().st_size == sums["bytes"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
