"""The labels of ImageNet's validation images, which lie beside the images in a file of their own.

| file | content | order |
|---|---|---|
| `imagenet_2012_validation_synset_labels.txt` and the like | a class in each line | that of the images' names |
| `LOC_val_solution.csv` | name of an image, class, ... | any |
| `val.txt` of Caffe | name of an image, number of its class from 0 | any |
| `ILSVRC2012_validation_ground_truth.txt` | a number, `ILSVRC2012_ID`, in each line | that of the images' names |

For ImageNet's 1,000 classes, the numbers of the last are not those of the sorted WordNet ids, and need the development
kit. For any other number of classes, they are those of the sorted classes, from 1 (or from 0 if a 0 is among them).
"""

import io
import os
import re
import tarfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from umd_eqx.core.errors import BadInput
from umd_eqx.data.folders import one_line
from umd_eqx.data.preparing.canonical import official_classes, official_validation_labels

DEVKIT = "ILSVRC2012_devkit_t12"
_MOST_BYTES = 16 << 20  # of a file in its archive; the largest has 170 kB
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_Row = tuple[int, str]
"""The number of a line, and its content."""

_NAMED = re.compile(r"val.*(label|synset|solution|truth)|val\.txt$|ground_truth|^labels\b", re.IGNORECASE)
_HINT = "Give a file with a class in each line: `validation_labels=imagenet_2012_validation_synset_labels.txt`"


def validation_labels(
    folder: str, names: Sequence[str], classes: Collection[str] | None, file: str | None = None
) -> tuple[list[str], str]:
    """Returns the class of each validation image, and where the labels are from.

    **Arguments:**

    - `folder`: where the images lie; a file of labels is searched there.
    - `names`: the file names of the images.
    - `classes`: the names of the classes; None if they are not known yet.
    - `file`: the file of labels; None searches for it. If there is none, and the images are the 50,000 of ImageNet
        2012, their labels are those that TFDS knows.

    **Raises:** `BadInput` naming `src` or `validation_labels`, with file and line, if there are no labels, more or
    fewer than images, or if a label is not a class.
    """
    if file is not None and not os.path.isfile(file):
        raise BadInput("validation_labels", f"there is no file {file}", _HINT)
    file = _search(folder) if file is None else file
    if file is None:
        official = official_validation_labels(names)
        if official is not None:
            return official, "tensorflow-datasets"
        raise BadInput("src", f"{folder} has validation images, but no file of their labels", _HINT)
    rows = [(number, line.strip()) for number, line in enumerate(_read(file).splitlines(), 1) if line.strip()]
    labels, origin = _by_name(file, rows, names, classes), os.path.basename(file)
    if labels is None:
        labels, how = _in_order(file, rows, names, classes, folder)
        origin += how
    for number, label in labels:
        if classes is not None and label not in classes:
            problem = f"{file}, line {number}: {label!r} is not one of the {len(classes)} classes"
            raise BadInput("src", problem, "Give the labels of these images.")
    by_name = {name: label for name, (_, label) in zip(sorted(names), labels, strict=True)}
    return [by_name[name] for name in names], origin


def _search(folder: str) -> str | None:
    """Returns the best file of labels in a folder, beside its development kit, or the archive of that."""
    found = []
    for place in (folder, os.path.join(folder, DEVKIT, "data"), os.path.join(folder, "data")):
        if os.path.isdir(place):
            found += [os.path.join(place, name) for name in sorted(os.listdir(place)) if _is_labels(name)]
    kit = os.path.join(folder, f"{DEVKIT}.tar.gz")
    found += [kit] if os.path.isfile(kit) else []
    # The numbers of the development kit come last: the other files can be read by themselves.
    return min(found, key=lambda path: (path == kit, "ground_truth" in path), default=None)


def _is_labels(name: str) -> bool:
    return name.lower().endswith((".txt", ".csv")) and _NAMED.search(name) is not None


def _read(file: str) -> str:
    try:
        if file.endswith(".tar.gz"):
            return _from_kit(file, GROUND_TRUTH).decode()
        with open(file, encoding="utf-8") as opened:
            return opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("validation_labels", f"{file} cannot be read ({one_line(error)})", _HINT) from error


def _by_name(file: str, rows: list[_Row], names: Sequence[str], classes: Collection[str] | None) -> list[_Row] | None:
    """Returns line and label of the sorted names if the lines begin with names of images, otherwise None."""
    stems, whole = {os.path.splitext(name)[0]: name for name in names}, set(names)
    found: dict[str, _Row] = {}
    for number, row in rows:
        name, _, rest = row.replace(",", " ", 1).partition(" ")
        known = name if name in whole else stems.get(name)
        if known is not None and rest.strip():
            found[known] = (number, rest.split()[0])
    if not found:
        return None
    missing = whole - set(found)
    if missing:
        raise BadInput("src", f"{file} has no label of {min(missing)}", "Give the labels of these images.")
    labels = [found[name] for name in sorted(names)]
    if classes is None or not all(label.isdigit() and label not in classes for _, label in labels):
        return labels
    if not any(label == "0" for _, label in labels):
        raise BadInput("src", f"{file} numbers the classes, but not from 0, so that their order is unknown", _HINT)
    ordered = dict(enumerate(sorted(classes)))
    return [(number, ordered.get(int(label), label)) for number, label in labels]


def _in_order(
    file: str, rows: list[_Row], names: Sequence[str], classes: Collection[str] | None, folder: str
) -> tuple[list[_Row], str]:
    """Returns line and label of the sorted names, from a file with one label in each line, and how it was read."""
    if len(rows) != len(names):
        problem = f"{file} has {len(rows)} labels, but there are {len(names)} validation images"
        raise BadInput("src", problem, "Give the labels of these images.")
    if not all(row.isdigit() for _, row in rows) or (classes is not None and rows[0][1] in classes):
        return rows, ""
    kit, how = _synsets(file, folder), ""
    others = classes is not None and len(classes) != len(official_classes()) and DEVKIT not in file
    if kit is None and classes is not None and others:
        first = 0 if any(int(row) == 0 for _, row in rows) else 1
        kit, how = dict(enumerate(sorted(classes), first)), f", numbers from {first} in the order of the sorted classes"
    if kit is None:
        problem = f"{file} has numbers in the order of the development kit, whose meta.mat is missing"
        raise BadInput("src", problem, f"Put {DEVKIT}.tar.gz beside it, or give labels that are WordNet ids")
    for number, row in rows:
        if int(row) not in kit:
            problem = f"{file}, line {number}: {row} is not the number of a class"
            raise BadInput("src", problem, "Give the labels of these images.")
    return [(number, kit[int(row)]) for number, row in rows], how


def _synsets(file: str, folder: str) -> Mapping[int, str] | None:
    """Returns the WordNet ids by ILSVRC2012_ID, from the development kit beside a file of labels; None without one."""
    beside = os.path.dirname(file)
    kit = file if file.endswith(".tar.gz") else os.path.join(folder, f"{DEVKIT}.tar.gz")
    loose = [os.path.join(place, "meta.mat") for place in (beside, os.path.join(folder, DEVKIT, "data"), folder)]
    path = next((place for place in [*loose, kit] if os.path.isfile(place)), None)
    if path is None:
        return None
    from scipy.io import loadmat  # a dependency of JAX; reads numbers and strings only

    try:
        content: Any = io.BytesIO(_from_kit(path, "meta.mat")) if path == kit else path
        rows = loadmat(content, squeeze_me=True)["synsets"]
        leaves = [row for row in rows if int(row["num_children"]) == 0]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except BadInput:
        raise
    except Exception as error:  # scipy raises many types, all caused by the file
        raise BadInput("src", f"{path} cannot be read ({one_line(error)})", "Copy it again.") from error


def _from_kit(path: str, name: str) -> bytes:
    """Returns a file in the archive of the development kit."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            for info in tar:
                if info.isfile() and os.path.basename(info.name) == name and (file := tar.extractfile(info)):
                    if info.size > _MOST_BYTES:
                        raise tarfile.ReadError(f"{name} takes {info.size} bytes")
                    return file.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BadInput("src", f"{path} cannot be read ({one_line(error)})", "Copy it again.") from error
    raise BadInput("src", f"{path} contains no {name}", "Give the original archive.")
