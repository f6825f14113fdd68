"""Finds what a folder of original images holds: the archives of ImageNet, their unpacked content, or other images."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tensorflow_datasets.core.hashing import Hasher

from umd_eqx.core.errors import BadInput
from umd_eqx.data.collection import Collection
from umd_eqx.data.files import FileRecords
from umd_eqx.data.folders import holds_tfds
from umd_eqx.data.image_folder import scan
from umd_eqx.data.preparing.archives import class_archives, first_member, flat_archive, is_image, nested
from umd_eqx.data.preparing.validation import validation_labels
from umd_eqx.data.records import Records

TRAIN, VALIDATION = "train", "validation"
TRAIN_ARCHIVE, VALIDATION_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
LAYOUTS = (
    f"Give the folder of {TRAIN_ARCHIVE} and {VALIDATION_ARCHIVE}, or of folders train/CLASS and val/CLASS, or other "
    "labelled images that --data.dir accepts"
)
_CLASS_ARCHIVE = re.compile(r"n\d{8}\.tar")


class Selection(NamedTuple):
    """The images of a split, in order: rows of a container, with the label and the name of each."""

    records: Records
    rows: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    names: tuple[str, ...]


class Originals(NamedTuple):
    """The images to prepare, by split.

    `classes` are the names of the classes in the order of their labels. `channels` is 3, or 1 if all images are grey.
    `notes` are lines about how they were found.
    """

    splits: dict[str, Selection]
    classes: tuple[str, ...]
    channels: int
    notes: tuple[str, ...] = ()


def find_originals(src: str, labels: str | None = None) -> Originals:
    """Finds the images in a folder or file, and the order in which they are stored.

    The order of a split is that of TFDS: of the MD5 of the name of the split and the name of the image. For ImageNet it
    is therefore that of TFDS's own `imagenet2012`, and does not depend on whether the archives have been unpacked.

    **Arguments:** a local folder or file; `labels` is the file of the labels of ImageNet's validation images.

    **Raises:** `BadInput` naming `src` or `validation_labels` if there are no labelled images, or if they cannot be
    read.
    """
    src = os.path.expanduser(src)
    if not os.path.exists(src):
        raise BadInput("src", f"there is no folder or file {src}", LAYOUTS)
    try:
        found = _imagenet(src, labels)
        if found is None:
            if labels is not None:
                raise BadInput("validation_labels", f"{src} has no validation images without labels", "Omit it")
            if holds_tfds(src):
                raise BadInput("src", f"{src} holds a prepared data set", "Train on it with --data.dir, as it is")
            found = _collection(src)
    except BadInput as error:
        if not error.field.startswith("data.source."):
            raise
        raise BadInput("src", error.problem, error.hint) from error
    return found


def tfds_order(split: str, names: Sequence[str]) -> Int[np.ndarray, "n"]:
    """Returns the order in which TFDS stores examples with these names."""
    hasher = Hasher(split)
    keys = [hasher.hash_key(name.encode("utf-8", "surrogateescape")) for name in names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _imagenet(src: str, labels: str | None) -> Originals | None:
    """Returns the images of a folder in which at least one split lies as in ImageNet's archives, otherwise None."""
    train = _train(src)
    flat = _flat_validation(src, any_name=train is not None)
    if train is None and flat is None:
        return None
    if train is None:
        train = _class_folders(os.path.join(src, TRAIN))
    splits: dict[str, Records] = {}
    classes: tuple[str, ...] | None = None
    if train is not None:
        splits[TRAIN], classes = train
    notes: list[str] = []
    if flat is not None:
        known, origin = validation_labels(src, [flat.key(row) for row in range(len(flat))], classes, labels)
        classes = tuple(sorted(set(known))) if classes is None else classes
        number = {name: label for label, name in enumerate(classes)}
        flat.labels = np.array([number[name] for name in known], np.int64)
        splits[VALIDATION] = flat
        notes.append(f"labels of the validation images: {origin}")
    else:
        for name in ("val", VALIDATION):
            if (beside := _class_folders(os.path.join(src, name), classes)) is not None:
                splits[VALIDATION] = beside[0]
    for split in (TRAIN, VALIDATION):
        if split not in splits:
            notes.append(f"there are no images of the split {split}")
    assert classes is not None
    return Originals({split: _ordered(split, some) for split, some in splits.items()}, classes, 3, tuple(notes))


def _train(src: str) -> tuple[Records, tuple[str, ...]] | None:
    """Returns the training images and the classes of an archive of archives, or of a folder of archives."""
    if os.path.isfile(src):
        archives = [src] if src.endswith(".tar") else []
    else:
        archives = [os.path.join(src, TRAIN_ARCHIVE)]
        named = sorted(name for name in os.listdir(src) if name.endswith(".tar") and TRAIN in name.lower())
        archives += [os.path.join(src, name) for name in named]
    for path in archives:
        if os.path.isfile(path) and (os.path.basename(path) == TRAIN_ARCHIVE or _holds_archives(path)):
            if not (inner := nested(path)):
                raise BadInput("src", f"{path} is empty", "Copy it again.")
            return class_archives(inner)
    for folder in (src, os.path.join(src, TRAIN)) if os.path.isdir(src) else ():
        names = os.listdir(folder) if os.path.isdir(folder) else []
        paths = {name[:-4]: os.path.join(folder, name) for name in names if _CLASS_ARCHIVE.fullmatch(name)}
        if paths:
            return class_archives({name: (path, 0, os.path.getsize(path)) for name, path in paths.items()})
    return None


def _holds_archives(path: str) -> bool:
    first = first_member(path)
    return first is not None and first.endswith(".tar")


def _flat_validation(src: str, *, any_name: bool) -> Records | None:
    """Returns validation images that lie in one tar file, with the original name or any, or folder, without labels."""
    if not os.path.isdir(src):
        return None
    archives = [os.path.join(src, VALIDATION_ARCHIVE)]
    if any_name:
        named = sorted(name for name in os.listdir(src) if name.endswith(".tar") and "val" in name.lower())
        archives += [os.path.join(src, name) for name in named]
    for path in archives:
        if os.path.isfile(path):
            return flat_archive(path)
    for name in ("val", VALIDATION):
        folder = os.path.join(src, name)
        if os.path.isdir(folder) and (content := scan(folder)).images and not content.folders:
            return FileRecords([folder], content.images, np.zeros(len(content.images), np.int32))
    return None


def _class_folders(folder: str, classes: tuple[str, ...] | None = None) -> tuple[Records, tuple[str, ...]] | None:
    """Returns the images in one folder per class. Raises `BadInput` for an empty one, or one that is not a class."""
    if not os.path.isdir(folder) or not (names := scan(folder).folders):
        return None
    classes = tuple(names) if classes is None else classes
    if unknown := sorted(set(names) - set(classes)):
        problem = f"{os.path.join(folder, unknown[0])} is not one of the {len(classes)} classes of the training images"
        raise BadInput("src", problem, "Remove the folder, or give the training images of that class.")
    files: list[str] = []
    which: list[int] = []
    for number, name in enumerate(names):
        images = scan(os.path.join(folder, name)).images
        if not images:
            problem = f"the class folder {os.path.join(folder, name)} has no images"
            raise BadInput("src", problem, "Remove the folder, or add images to it")
        files += images
        which += [number] * len(images)
    numbers = [classes.index(name) for name in names]
    paths = [os.path.join(folder, name) for name in names]
    return FileRecords(paths, files, np.array(which, np.int32), numbers, len(classes)), classes


def _collection(src: str) -> Originals:
    """Returns images of any other kind that `umd_eqx.data.looking` finds."""
    collection = Collection(src, "images")
    spec = collection.describe(0, 0)
    if not spec.num_classes:
        raise BadInput("src", f"the images in {src} have no labels", "Train on them with --data.dir, as they are")
    parts = collection.parts()
    names = next((records.class_names for records, _ in parts.values() if records.class_names is not None), None)
    classes = names or tuple(map(str, range(spec.num_classes)))
    splits = {}
    for split, (records, rows) in parts.items():
        name = VALIDATION if split == "val" else split
        splits[name] = _ordered(name, records, np.sort(rows))
    held_out = len({id(records) for records, _ in parts.values()}) < len(parts)
    notes = ("the images are a single split, of which a tenth is held out as `test`",) if held_out else ()
    return Originals(splits, classes, spec.channels, notes)


def _ordered(split: str, records: Records, rows: Int[np.ndarray, "n"] | None = None) -> Selection:
    """Returns the images of a split in the order of TFDS."""
    rows = np.arange(len(records)) if rows is None else rows
    names = [records.key(int(row)) for row in rows]
    short = [os.path.basename(name) for name in names]
    # TFDS calls an image of ImageNet by its file name alone; elsewhere it may be in several folders.
    if all(map(is_image, short)) and Counter(short).most_common(1)[0][1] == 1:
        names = short
    order = tfds_order(split, names)
    rows = rows[order]
    labels = np.full(len(rows), -1, np.int64) if records.labels is None else np.asarray(records.labels)[rows]
    return Selection(records, rows, labels, tuple(names[i] for i in order))
