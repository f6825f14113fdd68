"""Locating a data set: in `data_dir/name[/config]/version`, in `$TFDS_DATA_DIR`, or in this package."""

import os
import re
from typing import Any

from etils import epath

from umd_eqx.core.errors import BadInput, require_local
from umd_eqx.core.json_files import read_json_anywhere
from umd_eqx.core.remote import is_url, require_url

FORMATS = ("array_record", "tfrecord")
"""The file formats of TFDS that can be read."""

_INFO_FILE = "dataset_info.json"
_SEARCHED = 20
"""How many folders are searched for TFDS data on each level: there are more only if they are classes of images."""


def one_line(error: Exception) -> str:
    """Returns the message of an error as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _embedded() -> epath.Path:
    return epath.Path(__file__).parent / "embedded"


def _versions(folder: epath.Path) -> list[epath.Path]:
    """Returns the prepared versions in the folder of a data set, oldest first."""
    if not folder.is_dir():
        return []
    found = [child for child in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", child.name)]
    found = [child for child in found if (child / _INFO_FILE).exists()]
    return sorted(found, key=lambda child: tuple(int(number) for number in child.name.split(".")))


def _children(folder: epath.Path) -> str:
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _read_info(folder: epath.Path) -> dict[str, Any]:
    """Returns the parsed dataset_info.json of a version. Raises `BadInput` if it is invalid or of another format."""
    try:
        info = read_json_anywhere(folder / _INFO_FILE)
        file_format = info.get("fileFormat", "tfrecord")  # older versions of TFDS did not record the format
    except (OSError, ValueError, AttributeError) as error:
        hint = "Prepare the data set again"
        raise BadInput("data.source.dir", f"{folder / _INFO_FILE} cannot be read ({error})", hint) from error
    if file_format not in FORMATS:
        raise BadInput(
            "data.source.dir",
            f"{folder} is in {file_format} format, and only {' and '.join(FORMATS)} are supported",
            "With TensorFlow, prepare it by `tfds build NAME --file_format=array_record`, or convert it by "
            "`tfds convert_format --dataset_dir=... --out_file_format=array_record --out_dir=...`",
        )
    return info


def holds_tfds(root: str, depth: int = 2) -> bool:
    """Whether a folder is a prepared version of a TFDS data set, or has one at most `depth` + 1 folders below it."""
    folder = epath.Path(root)
    if (folder / _INFO_FILE).exists() or _versions(folder):
        return True
    if not depth or not folder.is_dir():
        return False
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return any(holds_tfds(os.fspath(folder / name), depth - 1) for name in names[:_SEARCHED])


def has_version(root: str, name: str) -> bool:
    """Whether a TFDS root has a prepared version of the data set `name`, or `name/config`."""
    return bool(_versions(epath.Path(root).expanduser() / name))


def find_dataset(name: str, data_dir: str | None) -> epath.Path:
    """Finds the folder of a prepared TFDS data set.

    **Arguments:**

    - `name`: the name of the data set, or `name/config`.
    - `data_dir`: a TFDS root (`data_dir/name[/config]/version`; the highest version is used), the folder of the data
        set, or the folder of one version, which contains `dataset_info.json`. None: `$TFDS_DATA_DIR` if it contains
        the data set, otherwise the data sets included in this package. A bucket (`gs://`, `s3://`, `az://`) is
        supported as well.

    **Returns:** the folder of one version.

    **Raises:** `BadInput` naming `data.source.dir` or `data.source.name` if the data set is not found or in
    another format than `FORMATS`.
    """
    embedded = _children(_embedded())
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
        raise BadInput("data.source.name", f"'{name}' is not a valid name", f"Use NAME or NAME/CONFIG ({embedded})")
    if data_dir is not None:
        _require_readable(data_dir)
        return _find_in(epath.Path(data_dir).expanduser(), name, embedded)
    roots = [epath.Path(root).expanduser() for root in [os.environ.get("TFDS_DATA_DIR")] if root]
    for root in [*roots, _embedded()]:
        if versions := _versions(root / name):
            _read_info(versions[-1])
            return versions[-1]
    looked = f"$TFDS_DATA_DIR ({roots[0]}) has no '{name}'" if roots else f"'{name}' is not included in this package"
    hint = f"Give the TFDS folder that contains it, or use `data.source.name={embedded}`, which requires none"
    raise BadInput("data.source.dir", looked, hint)


def _require_readable(data_dir: str) -> None:
    if is_url(data_dir):
        if data_dir.partition("://")[0] not in ("gs", "s3", "az"):  # those that etils reads
            require_local("data.source.dir", data_dir)
        require_url("data.source.dir", data_dir)


def _find_in(root: epath.Path, name: str, embedded: str) -> epath.Path:
    without = f"or omit `data.source.dir` to use a data set of this package ({embedded})"
    if not root.is_dir():
        problem = f"{root} is not a folder of images" if root.exists() else f"there is no folder {root}"
        raise BadInput("data.source.dir", problem, f"Give a TFDS folder, images of your own, {without}")
    folder = root if (root / _INFO_FILE).exists() else None
    if folder is None and (versions := _versions(root / name)):
        _read_info(versions[-1])
        return versions[-1]
    if folder is None and (versions := _versions(root)):
        folder = versions[-1]
    if folder is not None:  # the path does not contain the name: check that it is the requested data set
        info = _read_info(folder)
        found = "/".join(part for part in (info.get("name"), info.get("configName")) if part)
        if found != name:
            raise BadInput(
                "data.source.name",
                f"{name!r} was requested, but {folder} contains {found}",
                f"Use `data.source.name={found}`",
            )
        return folder
    if (root / name).is_dir() and (configs := _children(root / name)):
        hint = f"Give one of its folders as {name}/CONFIG ({configs}), or prepare the data set again"
        raise BadInput("data.source.name", f"{root / name} contains no prepared version", hint)
    holds = f"it contains {children}" if (children := _children(root)) else "it is empty"
    own = "give a folder of images, .npz, .tar or .parquet files"
    hint = f"Give the `data.source.name` of an existing data set, give another TFDS folder, {own}, {without}"
    raise BadInput("data.source.dir", f"{root} does not contain the data set '{name}' ({holds})", hint)
