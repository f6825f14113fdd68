"""Stored latents: the output of `experiments/encode_latents.py`, read like any other data set.

A folder holds shards in array_record format and, once complete, `manifest.json`. A record is the label of one image
(int32) followed by the posterior of each of its views: mean and log-variance, (views, h, w, 2 c), or the mean alone,
(views, h, w, c).
"""

import dataclasses
import functools
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python import array_record_data_source
from jaxtyping import Float32, Int, UInt8

from umd_eqx.core.errors import BadInput, require_local
from umd_eqx.core.hashes import sha256_of
from umd_eqx.core.json_files import read_json
from umd_eqx.core.types import DataSpec
from umd_eqx.data.source import BrokenImage, DataSource, Example, require_class
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.latents.checksums import mismatched

MANIFEST = "manifest.json"
FORMAT = 2
"""The format of the manifest and the settings. Others are rejected: before format 2, views were cropped differently."""

FINGERPRINT_IMAGES = 16
"""The number of images in the fingerprint of a data set."""

_LABEL = struct.Struct("<i")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that stored latents depend on, with the images and the tokenizer represented by fingerprints.

    - `source`: the `source_hash` of the images.
    - `tokenizer`: the fingerprint of the tokenizer.
    - `shift`, `scale`: the statistics with which z is standardised for a network; z itself is stored.
    - `size`, `area_min`, `flip`, `seed`, `views`: the augmentation and the number of augmented views of each image.
    - `shape`: the shape of a latent, (rows, columns, channels).
    - `mode_only`: whether only the mean is stored.
    - `dtype`: the dtype of the values in a record.
    - `images`, `per_shard`: the number of images, in total and in each shard.
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
        """The shape of the values stored for one image."""
        rows, columns, channels = self.shape
        return self.views, rows, columns, channels if self.mode_only else 2 * channels

    @property
    def shards(self) -> list[range]:
        """The indices of the images in each shard."""
        return [
            range(start, min(start + self.per_shard, self.images)) for start in range(0, self.images, self.per_shard)
        ]

    def shard_name(self, shard: int) -> str:
        """Returns the file name of a shard."""
        return f"latents-{shard:05d}-of-{len(self.shards):05d}.array_record"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The manifest of a complete folder: `settings`, the CRC-32 of each shard, and mean and standard deviation of z.

    `channel_mean` and `channel_std` are the mean and standard deviation of each channel.
    """

    settings: Settings
    crc32: tuple[int, ...]
    mean: float
    std: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    num_classes: int
    channels: int
    """The number of image channels."""

    @property
    def digest(self) -> str:
        """A fingerprint of the manifest, and thereby of the stored latents, as 16 hexadecimal digits."""
        return sha256_of(self.text().encode())[:16]

    def text(self) -> str:
        """Returns the content of the manifest file."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: str | os.PathLike[str], field: str = "data.latents") -> "Manifest":
        """Reads the manifest of a complete folder. Raises `BadInput` naming `field` if it is missing or unreadable."""
        require_local(field, folder)
        path = Path(folder).expanduser() / MANIFEST
        try:
            content = read_json(path)
            require_format(content.pop("format"), path, field)
            settings = content.pop("settings")
            settings = Settings(**{**settings, "shape": tuple(settings["shape"])})
            lists = {name: tuple(content.pop(name)) for name in ("crc32", "channel_mean", "channel_std")}
            return cls(settings, **lists, **content)
        except FileNotFoundError as error:
            problem = f"{folder} does not hold a complete set of latents"
            raise BadInput(field, problem, "Complete it with experiments/encode_latents.py") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(field, f"{path} cannot be read", "Encode the latents again") from error


def require_format(written: int, path: Path, field: str) -> None:
    """Raises `BadInput` naming `field` if the latents at `path` are not in the current format."""
    if written > FORMAT:
        raise BadInput(field, f"{path} was written by a newer version of this program", "Update the program")
    if written < FORMAT:
        problem = f"{path} was written by an older version of this program, which cropped images differently"
        raise BadInput(field, problem, "Encode the latents again, into another folder")


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
    field: str = "data.latents",
) -> None:
    """Raises `BadInput` if stored latents do not match the settings of a run.

    **Arguments:**

    - `digest`, `shift`, `scale`: the fingerprint and the statistics of the run's tokenizer.
    - `size`, `area_min`, `flip`: the side of the images and their augmentation in the run.
    - `source_hash`: the `source_hash` of the run's images.
    - `field`: the field that named the folder.
    """
    there = manifest.settings
    for what, stored, asked, hint in (
        ("another tokenizer", there.tokenizer, digest, "Set `tokenizer` to the one that encoded them"),
        ("another shift of the tokenizer", there.shift, shift, "Encode them again"),
        ("another scale of the tokenizer", there.scale, scale, "Encode them again"),
        ("another image size", there.size, size, f"Use `data.size={there.size}`"),
        ("another augmentation", there.area_min, float(area_min), f"Use `data.area_min={there.area_min:g}`"),
        ("another augmentation", there.flip, flip, f"Use `data.flip={there.flip}`"),
        ("other images", there.source, source_hash, "Use the data set that was encoded"),
    ):
        if stored != asked:
            raise BadInput(field, f"the latents were encoded with {what} ({stored}, now {asked})", hint)


def source_hash(source: DataSource) -> str:
    """Returns a fingerprint of a data set, from the number of its images and some of them: 16 hexadecimal digits.

    It does not depend on the location of the data set.
    """
    total = hashlib.sha256(f"{source.spec.name} {source.spec.channels} {source.spec.num_classes}".encode())
    total.update(f" {len(source)}".encode())
    for index in np.arange(FINGERPRINT_IMAGES) * len(source) // FINGERPRINT_IMAGES:
        try:
            example = source[int(index)]
        except BrokenImage:
            continue
        total.update(f"{example['image'].shape} {example['label']}".encode())
        total.update(np.ascontiguousarray(example["image"]).tobytes())
    return total.hexdigest()[:16]


def augmented(
    image: UInt8[np.ndarray, "h w c"], index: int, v: int, transform: TrainTransform, seed: int
) -> Float32[np.ndarray, "size size c"]:
    """Returns augmented view `v` of image `index`, a pure function of the image and of (seed, index, v)."""
    return transform(image, np.random.default_rng((seed, index, v)))


class LatentSource:
    """A data source of stored latents: `source[i]["image"]` holds the moments of all views of image i, in float32.

    These are the mean and log-variance of z, (views, h, w, 2 c), or the mean alone, (views, h, w, c). The source can be
    read from many threads, and pickled.

    **Arguments:**

    - `folder`: a complete folder.
    - `field`: the field that named it.
    - `manifest`: its manifest, if it was read already.
    - `checked`: whether the checksums of the shards were compared already. Otherwise all of them are read once.

    **Raises:** `BadInput` as `Manifest.read` does, and if a shard is missing, damaged or swapped with another.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        field: str = "data.latents",
        manifest: Manifest | None = None,
        *,
        checked: bool = False,
    ):
        self._folder, self._field = os.fspath(folder), field
        self.manifest = Manifest.read(folder, field) if manifest is None else manifest
        settings = self.manifest.settings
        path = Path(folder).expanduser()
        files = [path / settings.shard_name(shard) for shard in range(len(settings.shards))]
        hint = "Run experiments/encode_latents.py again"
        for file in files:
            if not file.exists():
                raise BadInput(field, f"{file} is missing", hint)
        for shard in [] if checked else self._damaged(files)[:1]:
            raise BadInput(field, f"{files[shard]} is damaged, or not the shard of this name", hint)
        try:
            self._records = array_record_data_source.ArrayRecordDataSource([str(file) for file in files])
        except Exception as error:  # array_record raises many types; all are due to the files
            raise BadInput(field, f"the shards in {path} cannot be read", hint) from error
        if len(self._records) != settings.images:
            problem = f"{path} holds {len(self._records)} records instead of {settings.images}"
            raise BadInput(field, problem, hint)
        rows, columns, _ = settings.shape
        classes, count = self.manifest.num_classes, settings.images
        self.spec = DataSpec(settings.name, count, 0, rows, columns, settings.record_shape[-1], classes)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(LatentSource, checked=True), (self._folder, self._field)

    def _damaged(self, files: list[Path]) -> list[int]:
        try:
            return mismatched(files, self.manifest.crc32)
        except (OSError, ValueError) as error:  # the latter for another number of checksums
            hint = "Run experiments/encode_latents.py again"
            raise BadInput(self._field, f"the shards in {self._folder} cannot be read", hint) from error

    def __len__(self) -> int:
        return self.manifest.settings.images

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the labels of some images; -1 for broken ones."""
        return np.array([self._label(int(i)) for i in indices], np.int64)

    def _label(self, index: int) -> int:
        try:
            return self[index]["label"]
        except BrokenImage:
            return -1

    def __getitem__(self, index: int) -> Example:
        """Returns the moments and label of image `index`.

        Raises `BrokenImage` if its record cannot be read or its label is not a valid class.
        """
        settings = self.manifest.settings
        try:
            record = self._records[index]
            numbers = np.frombuffer(record, settings.dtype, offset=_LABEL.size).reshape(settings.record_shape)
            label = _LABEL.unpack_from(record)[0]
        except Exception as error:  # array_record raises many types
            raise BrokenImage(index, "its record cannot be read") from error
        return {"image": numbers.astype(np.float32), "label": require_class(index, label, self.spec.num_classes)}


@dataclasses.dataclass(frozen=True)
class ChooseView:
    """Chooses one of the stored views of an image."""

    def __call__(
        self, moments: Float32[np.ndarray, "views h w c"], rng: np.random.Generator
    ) -> Float32[np.ndarray, "h w c"]:
        """Returns one view, uniformly at random."""
        return moments[rng.integers(len(moments))]


def pack_record(label: int, moments: Float32[np.ndarray, "views h w c"], dtype: str) -> bytes:
    """Returns the record of one image."""
    return _LABEL.pack(label) + np.ascontiguousarray(moments, np.dtype(dtype).newbyteorder("<")).tobytes()
