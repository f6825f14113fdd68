"""Where a data set lies: `data_dir/name[/config]/version`, `$TFDS_DATA_DIR`, or what comes with this package."""

import json
import os
import re
from typing import Any

from etils import epath

from umd_eqx.core.errors import BadInput

_INFO_FILE = "dataset_info.json"


def one_line(error: Exception) -> str:
    """What an error says, as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _embedded() -> epath.Path:
    return epath.Path(__file__).parent / "embedded"


def _versions(folder: epath.Path) -> list[epath.Path]:
    """The prepared versions in the folder of a data set, oldest first."""
    if not folder.is_dir():
        return []
    found = [child for child in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", child.name)]
    found = [child for child in found if (child / _INFO_FILE).exists()]
    return sorted(found, key=lambda child: tuple(int(number) for number in child.name.split(".")))


def _children(folder: epath.Path) -> str:
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _read_info(folder: epath.Path) -> dict[str, Any]:
    """The parsed dataset_info.json of one version's folder; `BadInput` if it is none or not in array_record format."""
    try:
        info = json.loads((folder / _INFO_FILE).read_text())
        file_format = info.get("fileFormat", "tfrecord")  # what TFDS wrote before it wrote the format down
    except (OSError, ValueError, AttributeError) as error:
        hint = "Prepare the data set anew."
        raise BadInput("--data.dir", f"{folder / _INFO_FILE} cannot be read ({error})", hint) from error
    if file_format != "array_record":
        raise BadInput(
            "--data.dir",
            f"{folder} is in {file_format} format, and only array_record is read",
            "Where TensorFlow is installed, `tfds build NAME --file_format=array_record` prepares it and "
            "`tfds convert_format --dataset_dir=... --out_file_format=array_record --out_dir=...` converts it.",
        )
    return info


def find_dataset(name: str, data_dir: str | None) -> epath.Path:
    """Find the folder of a prepared TFDS data set.

    **Arguments:**

    - `name`: the data set's name, or `name/config`.
    - `data_dir`: a TFDS root (`data_dir/name[/config]/version`; the highest version is taken), or the data set's
        folder, or one version's folder (the one with `dataset_info.json`). None: `$TFDS_DATA_DIR` if it holds the
        name, else the sets that come with this package. A bucket (`gs://...`) may stand where a folder does.

    **Returns:** one version's folder.

    **Raises:** `BadInput` naming `--data.dir` or `--data.name`, if nothing is there or it is not array_record.
    """
    embedded = _children(_embedded())
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
        raise BadInput("--data.name", f"'{name}' is no name of a data set", f"Say NAME or NAME/CONFIG ({embedded}).")
    if data_dir is not None:
        return _find_in(epath.Path(data_dir).expanduser(), name, embedded)
    roots = [epath.Path(root).expanduser() for root in [os.environ.get("TFDS_DATA_DIR")] if root]
    for root in [*roots, _embedded()]:
        if versions := _versions(root / name):
            _read_info(versions[-1])
            return versions[-1]
    looked = f"$TFDS_DATA_DIR ({roots[0]}) has no '{name}'" if roots else f"'{name}' does not come with this package"
    hint = f"Give the TFDS folder that holds it, or take --data.name {embedded}, which needs none."
    raise BadInput("--data.dir", looked, hint)


def _find_in(root: epath.Path, name: str, embedded: str) -> epath.Path:
    without = f"or leave --data.dir out for what comes with this package ({embedded})."
    if not root.is_dir():
        raise BadInput("--data.dir", f"there is no folder {root}", f"Give a TFDS folder, {without}")
    folder = root if (root / _INFO_FILE).exists() else None
    if folder is None and (versions := _versions(root / name)):
        _read_info(versions[-1])
        return versions[-1]
    if folder is None and (versions := _versions(root)):
        folder = versions[-1]
    if folder is not None:  # it was given without its name: check that it is the one meant
        info = _read_info(folder)
        found = "/".join(part for part in (info.get("name"), info.get("configName")) if part)
        if found != name:
            raise BadInput("--data.name", f"is {name}, but {folder} holds {found}", f"Say --data.name {found}.")
        return folder
    if (root / name).is_dir() and (configs := _children(root / name)):
        hint = f"Name one of its folders, as in {name}/CONFIG ({configs}), or prepare it anew."
        raise BadInput("--data.name", f"{root / name} holds no prepared version", hint)
    holds = f"it holds {children}" if (children := _children(root)) else "it is empty"
    folder_of_images = "read a folder of image files by --data.source folder"
    hint = f"Name a data set that is there by --data.name, give another TFDS folder, {folder_of_images}, {without}"
    raise BadInput("--data.dir", f"{root} holds no data set '{name}' ({holds})", hint)
