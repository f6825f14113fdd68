"""What is known about a prepared data set: `manifest.json` beside its files, and the metadata that TFDS reads."""

import dataclasses
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info, file_adapters, naming
from tensorflow_datasets.core.splits import SplitDict

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import replacing, save_json
from umd_eqx.core.hashes import sha256_of
from umd_eqx.core.json_files import read_json
from umd_eqx.data.prepared import MANIFEST, description_of, read_manifest
from umd_eqx.data.preparing.originals import Originals
from umd_eqx.data.preparing.shards import PROGRESS, Facts, Settings, content_hash, features_of

SETTINGS = "settings.json"
FORMAT = 1
"""The format of the manifest and of the settings of an unfinished preparation."""

_INFO = "dataset_info.json"
_FIELDS = {
    "name": "name",
    "version": "name",
    "size": "size",
    "resize": "resize",
    "per_shard": "per_shard",
    "source": "src",
}
"""The flag that sets each setting."""


def claim(folder: Path, settings: Settings) -> dict[str, Facts]:
    """Checks that a folder is new, or belongs to a preparation with the same settings, and marks it as such.

    **Returns:** the facts about each file that was finished before, by its name.

    **Raises:** `BadInput` naming the field that differs, or `out` if the folder holds other files.
    """
    there = prepared_settings(folder)
    now = dataclasses.asdict(settings)
    if there is None:
        foreign = [entry.name for entry in folder.iterdir() if entry.name not in (".lock", PROGRESS)]
        if foreign:
            problem = f"{folder} holds {min(foreign)!r}, which was not written by this command"
            raise BadInput("out", problem, "Choose another folder")
        (folder / PROGRESS).mkdir(exist_ok=True)
        save_json(folder / PROGRESS / SETTINGS, {"format": FORMAT, **now})
        return {}
    for name, field in _FIELDS.items():
        if there.get(name) != now[name]:
            was, asked = ("none" if value is None else value for value in (there.get(name), now[name]))
            stated = (
                "was prepared from other images" if name == "source" else f"has another {name} ({was}, now {asked})"
            )
            problem = f"{folder} {stated}"
            raise BadInput(field, problem, "Give the same as before, or another `out`")
    for entry in folder.glob("*.tmp"):  # of a process that was killed
        entry.unlink(missing_ok=True)
    (folder / PROGRESS).mkdir(exist_ok=True)
    finished = read_manifest(folder) or {"files": []}
    known = {facts["name"]: facts for facts in finished["files"]}
    for path in (folder / PROGRESS).glob("*.array_record-*.json"):
        facts = _read(path)
        if facts is not None and isinstance(facts.get("sha256"), str):
            known[facts["name"]] = facts
    return known


def prepared_settings(folder: Path) -> dict[str, Any] | None:
    """Returns the settings of a finished or unfinished preparation in a folder, None if there is none.

    **Raises:** `BadInput` naming `out` if they were written by a newer version of this program.
    """
    finished = read_manifest(folder)
    found = _read(folder / PROGRESS / SETTINGS) if finished is None else finished["settings"] | {"format": FORMAT}
    if found is not None and found.get("format") != FORMAT:
        problem = f"{folder} was prepared by another version of this program"
        raise BadInput("out", problem, "Choose another folder, or update the program")
    return found


def finish(
    folder: Path, settings: Settings, originals: Originals, files: Iterable[Facts], departures: list[str]
) -> dict[str, Any]:
    """Writes the metadata of a data set whose files are complete, and returns its manifest.

    `dataset_info.json`, without which TFDS finds no data, is written last.
    """
    order = {split: number for number, split in enumerate(originals.splits)}
    files = sorted(files, key=lambda facts: (order[facts["split"]], facts["number"]))
    shown = [_portable(facts) for facts in files]
    images = {split: sum(facts["records"] for facts in files if facts["split"] == split) for split in order}
    metadata = folder / PROGRESS / "metadata"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir(parents=True)
    _write_metadata(metadata, folder, settings, originals, files)
    names = sorted(path.name for path in metadata.iterdir())
    about = [(name, sha256_of((metadata / name).read_bytes())) for name in names]
    manifest = {
        "format": FORMAT,
        "settings": dataclasses.asdict(settings),
        "sha256": content_hash([*about, *((facts["name"], facts["sha256"]) for facts in files)]),
        "images": images,
        "departures": departures,
        "files": shown,
    }
    for name in sorted(names, key=lambda name: name == _INFO):
        if name == _INFO:
            save_json(folder / MANIFEST, manifest)
        with replacing(folder / name) as unfinished:
            shutil.copyfile(metadata / name, unfinished)
    shutil.rmtree(folder / PROGRESS)
    return manifest


def is_finished(folder: Path) -> bool:
    """Whether a preparation in a folder was completed."""
    return (folder / _INFO).exists() and read_manifest(folder) is not None


def _portable(facts: Facts) -> Facts:
    """Returns the facts about a file that do not depend on where its images were, or on how it was written."""
    held = {name: value for name, value in facts.items() if name != "kept"}
    return held | {"broken": [entry[:2] for entry in facts["broken"]]}


def _write_metadata(target: Path, folder: Path, settings: Settings, originals: Originals, files: list[Facts]) -> None:
    """Writes what TFDS reads: `dataset_info.json`, `features.json` and the names of the classes."""
    identity = dataset_info.DatasetIdentity(
        name=settings.name, version=tfds.core.Version(settings.version), data_dir=os.fspath(folder), module_name=""
    )
    features = features_of(settings, originals, {kind for facts in files for kind in facts["formats"]})
    info = dataset_info.DatasetInfo(
        builder=identity,
        features=features,
        supervised_keys=("image", "label"),
        description=description_of(settings.size, settings.resize),
        disable_shuffling=False,
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    splits = []
    for split in originals.splits:
        mine = [facts for facts in files if facts["split"] == split]
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path(folder),
            template=naming.DEFAULT_FILENAME_TEMPLATE,
            dataset_name=settings.name,
            split=split,
            filetype_suffix="array_record",
        )
        lengths, size = [facts["records"] for facts in mine], sum(facts["bytes"] for facts in mine)
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
        )
    info.set_splits(SplitDict(splits))
    info.write_to_directory(target)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
        return found if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None
