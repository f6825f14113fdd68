"""A data set encoded once, shard by shard: a run that was killed goes on with the first shard that is missing."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int

from umd_eqx.data.latents import MANIFEST, Manifest, Settings, packed, view
from umd_eqx.data.loader import evaluation_batches
from umd_eqx.data.source import DataSource, Example
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.errors import BadInput
from umd_eqx.latents import join_moments
from umd_eqx.models.tokenizer import AbstractTokenizer
from umd_eqx.report import write_atomically
from umd_eqx.sharding import batch_sharding, place, replicated, whole_batch
from umd_eqx.types import DataSpec

SETTINGS = "settings.json"
"""What the latents in a folder depend on, written before the first of them."""

WRITER_OPTIONS = "group_size:1"
"""A record in a chunk of its own, as TFDS writes them: read in any order."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What is told on the way: the images that are done, what goes on, and whether to stop now."""

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
    progress: Progress | None = None,
) -> Manifest | None:
    """Writes the latents that `settings` describes into a folder, and their manifest when all are there.

    What is there already is left as it is: killed and begun again as often as may be, it leaves the bytes that an
    undisturbed run on as many devices would have left.

    **Arguments:**

    - `source`: the images; none of them broken (`SkipBroken`).
    - `tokenizer`: what `settings.tokenizer` is the fingerprint of.
    - `folder`: an empty or new one, or one that was begun with the same settings.
    - `mesh`: the devices that share each batch of `batch_size` views, rounded up to a multiple of them.
    - `threads`: that read and augment images.
    - `progress`: told of, and asked, after each batch.

    **Returns:** the manifest; None where `progress.stop` said so before the end.

    **Raises:** `BadInput` naming `--out` for a folder that holds something else, or too little room.
    """
    progress = Progress() if progress is None else progress
    begin(folder, settings)
    tokenizer = place(tokenizer, replicated(mesh))
    views = _Views(source, settings)
    size = whole_batch(batch_size, mesh)
    for shard, images in enumerate(settings.shards):
        if _sums_path(folder, settings, shard).exists():
            progress.update(images.stop)
            continue
        moments: list[np.ndarray] = []
        for part in _encoded(tokenizer, views, images, settings, size, mesh, threads):
            moments.append(part)
            progress.update(images.start + sum(map(len, moments)) // settings.views)
            if progress.stop():
                return None
        labels = source.labels(np.asarray(images))
        _write_shard(folder, settings, shard, labels, np.concatenate(moments).reshape(-1, *settings.record_shape))
    manifest = _manifest(folder, settings, source.spec)
    write_atomically(folder / MANIFEST, manifest.text().encode())
    return manifest


def begin(folder: Path, settings: Settings) -> None:
    """Makes a folder that of these latents, or sees that it is. Raises `BadInput` naming the flag that differs."""
    path, text = folder / SETTINGS, json.dumps(dataclasses.asdict(settings), indent=2) + "\n"
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise BadInput("--out", f"{path} cannot be read", "Choose another folder") from error
        now = json.loads(text)
        for name in now:
            if there.get(name) != now[name]:
                problem = f"{folder} was begun with {name} {there.get(name)}, and now it is {now[name]}"
                raise BadInput("--out", problem, "Ask for the old value to go on with it, or choose another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [entry.name for entry in folder.iterdir() if entry.name != ".lock" and entry.suffix != ".tmp"]
    if foreign:
        raise BadInput("--out", f"{folder} holds {min(foreign)!r} and no latents", "Choose an empty or a new folder")
    need = settings.images * (4 + int(np.prod(settings.record_shape)) * np.dtype(settings.dtype).itemsize)
    free = shutil.disk_usage(folder).free
    if free < need:
        problem = f"{folder} has {free / 1e9:.2f} GB free, and the latents need up to {need / 1e9:.2f} GB"
        raise BadInput("--out", problem, "Choose another disk, fewer --views, --mode-only or --half")
    write_atomically(path, text.encode())


class _Views:
    """Each view of each image, one after the other, as a data set of its own: what `evaluation_batches` reads."""

    def __init__(self, source: DataSource, settings: Settings):
        self._source, self._settings = source, settings
        self._transform = TrainTransform(settings.size, settings.area_min, settings.flip)

    @property
    def spec(self) -> DataSpec:
        size = self._settings.size
        return self._source.spec._replace(height=size, width=size)

    def __len__(self) -> int:
        return self._settings.images * self._settings.views

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        return self._source.labels(indices // self._settings.views)

    def __getitem__(self, index: int) -> Example:
        image, v = divmod(index, self._settings.views)
        return {"image": view(self._source, image, v, self._transform, self._settings.seed), "label": 0}


def _encoded(
    tokenizer: AbstractTokenizer,
    views: _Views,
    images: range,
    settings: Settings,
    size: int,
    mesh: Mesh,
    threads: int,
) -> Iterator[Float32[np.ndarray, "rows h w stored"]]:
    indices = np.arange(images.start * settings.views, images.stop * settings.views)
    batches = evaluation_batches(views, _as_it_is, size, indices, threads=threads)
    for batch in batches:
        moments = _moments(tokenizer, jax.device_put(batch.image, batch_sharding(mesh)), settings.mode_only)
        yield np.asarray(moments)[batch.valid]


def _as_it_is(image: np.ndarray) -> Float32[np.ndarray, "size size c"]:
    # A view is transformed already.
    return np.asarray(image, np.float32)


@eqx.filter_jit
def _moments(
    tokenizer: AbstractTokenizer, images: Float[Array, "b h w c"], mode_only: bool
) -> Float[Array, "b lh lw stored"]:
    return jax.vmap(lambda image: join_moments(tokenizer.encode_raw(image), mode_only=mode_only))(images)


def _write_shard(
    folder: Path,
    settings: Settings,
    shard: int,
    labels: Int[np.ndarray, "n"],
    moments: Float32[np.ndarray, "n views h w stored"],
) -> None:
    """The shard, and then beside it its checksum and sums: a shard without these is not complete."""
    path = folder / settings.shard_name(shard)
    unfinished = path.with_name(f"{path.name}.tmp")
    records = [packed(int(label), one, settings.dtype) for label, one in zip(labels, moments, strict=True)]
    try:
        writer = array_record_module.ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # as it tells of a full disk
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(unfinished)) from error
    unfinished.replace(path)
    channels = settings.shape[2]
    mean, logvar = moments[..., :channels].astype(np.float64), moments[..., channels:].astype(np.float64)
    square = mean**2 + (np.exp(logvar) if logvar.size else 0.0)
    axes = tuple(range(4))
    sums = {
        "crc32": zlib.crc32(path.read_bytes()),
        "count": mean.size // channels,
        "sum": mean.sum(axis=axes).tolist(),
        "square": square.sum(axis=axes).tolist(),
    }
    write_atomically(_sums_path(folder, settings, shard), (json.dumps(sums) + "\n").encode())


def _manifest(folder: Path, settings: Settings, spec: DataSpec) -> Manifest:
    parts: list[dict[str, Any]] = [
        json.loads(_sums_path(folder, settings, shard).read_text()) for shard in range(len(settings.shards))
    ]
    count = sum(part["count"] for part in parts)
    mean, square = (np.sum([part[name] for part in parts], axis=0) / count for name in ("sum", "square"))
    deviation = functools.partial(np.sqrt, dtype=np.float64)
    return Manifest(
        settings,
        crc32=tuple(part["crc32"] for part in parts),
        mean=float(mean.mean()),
        std=float(deviation(max(square.mean() - mean.mean() ** 2, 0.0))),
        channel_mean=tuple(mean.tolist()),
        channel_std=tuple(deviation(np.maximum(square - mean**2, 0.0)).tolist()),
        num_classes=spec.num_classes,
        channels=spec.channels,
    )


def _sums_path(folder: Path, settings: Settings, shard: int) -> Path:
    return (folder / settings.shard_name(shard)).with_suffix(".json")
