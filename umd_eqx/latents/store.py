"""Latents on the disk: what `experiments/encode_latents.py` leaves, read as any other data set.

A folder holds shards in array_record format and, when it is complete, `manifest.json`. A record is the label (int32)
and then what the tokenizer says of each view of one image: mean and log-variance of its latent, (views, h, w, 2 c), or
the mean alone, (views, h, w, c).
"""

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python import array_record_data_source
from jaxtyping import Float32, Int, UInt8

from umd_eqx.core.errors import BadInput
from umd_eqx.core.hashes import sha256_of
from umd_eqx.core.types import DataSpec
from umd_eqx.data.source import BrokenImage, DataSource, Example, require_class
from umd_eqx.data.transforms import TrainTransform

MANIFEST = "manifest.json"
FORMAT = 2
"""Of the manifest, and of what begins a folder. Any other is refused: before 2, views were cut in another way."""

PROBED = 16
"""Images by which data are told from other data."""

_LABEL = struct.Struct("<i")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that stored latents depend on, besides the images and the tokenizer that these fingerprints stand for.

    - `source`: `source_hash` of the images; `tokenizer`: the fingerprint of what encoded them.
    - `shift`, `scale`: what a network's latents are made of z by; the stored ones are z itself.
    - `size`, `area_min`, `flip`, `seed`, `views`: how many augmented views of each image there are, and of which kind.
    - `shape`: of a latent, (rows, columns, channels).
    - `mode_only`: whether the mean is stored alone.
    - `dtype`: of the numbers in a record.
    - `images`, `per_shard`: how many images there are, and in each shard.
    """

    name: str
    split: str
    source: str
    tokenizer: str
    shift: float
    scale: float
    size: int
    area_min: float | int
    flip: bool
    seed: int
    views: int
    shape: tuple[int, int, int]
    mode_only: bool
    dtype: Literal["float32", "float16"]
    images: int
    per_shard: int

    @property
    def record_shape(self) -> tuple[int, int, int, int]:
        """Of what is stored of one image."""
        rows, columns, channels = self.shape
        return self.views, rows, columns, channels if self.mode_only else 2 * channels

    @property
    def shards(self) -> list[range]:
        """The images of each shard."""
        return [
            range(start, min(start + self.per_shard, self.images)) for start in range(0, self.images, self.per_shard)
        ]

    def shard_name(self, shard: int) -> str:
        """The file of a shard."""
        return f"latents-{shard:05d}-of-{len(self.shards):05d}.array_record"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What lies in a complete folder: `settings`, the CRC-32 of each shard, and mean and standard deviation of z.

    `channel_mean` and `channel_std` are the same channel by channel.
    """

    settings: Settings
    crc32: tuple[int, ...]
    mean: float
    std: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    num_classes: int
    channels: int
    """Of an image."""

    @property
    def digest(self) -> str:
        """A fingerprint of all of it, and so of what is stored: 16 hexadecimal digits."""
        return sha256_of(self.text().encode())[:16]

    def text(self) -> str:
        """As it is written."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: str | os.PathLike[str], field: str = "--data.latents") -> "Manifest":
        """That of a complete folder. Raises `BadInput` naming `field` where there is none that can be read."""
        path = Path(folder).expanduser() / MANIFEST
        try:
            content = json.loads(path.read_text())
            require_format(content.pop("format"), path, field)
            settings = content.pop("settings")
            settings = Settings(**{**settings, "shape": tuple(settings["shape"])})
            lists = {name: tuple(content.pop(name)) for name in ("crc32", "channel_mean", "channel_std")}
            return cls(settings, **lists, **content)
        except FileNotFoundError as error:
            problem = f"{folder} holds no complete set of latents"
            raise BadInput(field, problem, "Let experiments/encode_latents.py finish it") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(field, f"{path} cannot be read", "Encode the latents anew") from error


def require_format(written: int, path: Path, field: str) -> None:
    """Raises `BadInput` naming `field` where latents at `path` have another format than this program's."""
    if written > FORMAT:
        raise BadInput(field, f"{path} was written by a newer version of this program", "Update it")
    if written < FORMAT:
        problem = f"{path} was written by an older version of this program, which cut images in another way"
        raise BadInput(field, problem, "Encode the latents anew, into another folder")


def check(
    manifest: Manifest,
    *,
    digest: str,
    shift: float,
    scale: float,
    size: int,
    area_min: float | int,
    flip: bool,
    source_hash: str,
    field: str = "--data.latents",
) -> None:
    """Raises `BadInput`, in one line, where stored latents are not those that a run asks for.

    **Arguments:** the tokenizer's fingerprint, shift and scale, the side of the images and their augmentation, and the
    `source_hash` of the images, as the run has them; the flag that named the folder.
    """
    there = manifest.settings
    for what, stored, asked, hint in (
        ("another tokenizer", there.tokenizer, digest, "Give --tokenizer the one that made them"),
        ("another shift of the tokenizer", there.shift, shift, "Encode them anew"),
        ("another scale of the tokenizer", there.scale, scale, "Encode them anew"),
        ("images of another size", there.size, size, f"Ask for --data.size {there.size}"),
        ("another augmentation", there.area_min, float(area_min), f"Ask for --data.area-min {there.area_min:g}"),
        ("another augmentation", there.flip, flip, f"Ask for --data.{'' if there.flip else 'no-'}flip"),
        ("other images", there.source, source_hash, "Give the data that they were made of"),
    ):
        if stored != asked:
            raise BadInput(field, f"the latents were made with {what} ({stored}, and now {asked})", hint)


def source_hash(source: DataSource) -> str:
    """A fingerprint of a data set, wherever it lies: how many images, and some of them. 16 hexadecimal digits."""
    total = hashlib.sha256(f"{source.spec.name} {source.spec.channels} {source.spec.num_classes}".encode())
    total.update(f" {len(source)}".encode())
    for index in np.arange(PROBED) * len(source) // PROBED:
        try:
            example = source[int(index)]
        except BrokenImage:
            continue
        total.update(f"{example['image'].shape} {example['label']}".encode())
        total.update(np.ascontiguousarray(example["image"]).tobytes())
    return total.hexdigest()[:16]


def view(
    source: DataSource, index: int, v: int, transform: TrainTransform, seed: int
) -> Float32[np.ndarray, "size size c"]:
    """View `v` of image `index`, augmented: a pure function of (seed, index, v). Raises what the source raises."""
    return augmented(source[index]["image"], index, v, transform, seed)


def augmented(
    image: UInt8[np.ndarray, "h w c"], index: int, v: int, transform: TrainTransform, seed: int
) -> Float32[np.ndarray, "size size c"]:
    """The same where the pixels of image `index` are at hand."""
    return transform(image, np.random.default_rng((seed, index, v)))


class LatentSource:
    """Stored latents by index: `source[i]["image"]` is what is stored of all views of image i, float32.

    (views, h, w, 2 c), mean and log-variance of z, or (views, h, w, c). It can be read from many threads, and pickled.

    **Arguments:** a complete folder, the flag that named it, and its manifest where that was read already. **Raises:**
    `BadInput` as `Manifest.read`, and where a shard is missing or of another length.
    """

    def __init__(self, folder: str | os.PathLike[str], field: str = "--data.latents", manifest: Manifest | None = None):
        self._folder, self._field = os.fspath(folder), field
        self.manifest = Manifest.read(folder, field) if manifest is None else manifest
        settings = self.manifest.settings
        place = Path(folder).expanduser()
        files = [place / settings.shard_name(shard) for shard in range(len(settings.shards))]
        hint = "Run experiments/encode_latents.py once more"
        for file in files:
            if not file.exists():
                raise BadInput(field, f"{file} is missing", hint)
        try:
            self._records = array_record_data_source.ArrayRecordDataSource([str(file) for file in files])
        except Exception as error:  # array_record raises many kinds; the files are at fault
            raise BadInput(field, f"the shards in {place} cannot be read", hint) from error
        if len(self._records) != settings.images:
            problem = f"{place} holds {len(self._records)} records and not {settings.images}"
            raise BadInput(field, problem, hint)
        rows, columns, _ = settings.shape
        classes, count = self.manifest.num_classes, settings.images
        self.spec = DataSpec(settings.name, count, 0, rows, columns, settings.record_shape[-1], classes)

    def __reduce__(self) -> tuple[Any, ...]:
        return LatentSource, (self._folder, self._field)

    def __len__(self) -> int:
        return self.manifest.settings.images

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The classes of some images; -1 for those that are broken."""
        return np.array([self._label(int(i)) for i in indices], np.int64)

    def _label(self, index: int) -> int:
        try:
            return self[index]["label"]
        except BrokenImage:
            return -1

    def __getitem__(self, index: int) -> Example:
        """What is stored of image `index`. Raises `BrokenImage` if its record cannot be read or its label is none."""
        settings = self.manifest.settings
        try:
            record = self._records[index]
            numbers = np.frombuffer(record, settings.dtype, offset=_LABEL.size).reshape(settings.record_shape)
            label = _LABEL.unpack_from(record)[0]
        except Exception as error:  # array_record raises many kinds
            raise BrokenImage(index, "its record cannot be read") from error
        return {"image": numbers.astype(np.float32), "label": require_class(index, label, self.spec.num_classes)}


@dataclasses.dataclass(frozen=True)
class ChooseView:
    """One of the stored views of an image."""

    def __call__(
        self, moments: Float32[np.ndarray, "views h w c"], rng: np.random.Generator
    ) -> Float32[np.ndarray, "h w c"]:
        """Each view is as likely as another."""
        return moments[rng.integers(len(moments))]


def packed(label: int, moments: Float32[np.ndarray, "views h w c"], dtype: str) -> bytes:
    """The record of one image."""
    return _LABEL.pack(label) + np.ascontiguousarray(moments, np.dtype(dtype).newbyteorder("<")).tobytes()
