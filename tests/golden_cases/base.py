"""What a golden group is: a row of the README's tolerance table, its files, and the comparisons it makes."""

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

KNOWN_FILES = (
    "adamw",
    "conv_transpose",
    "ddim",
    "e2e_loss_grad",
    "fewshot",
    "fid_is",
    "gd_*",
    "loss",
    "lr_schedule",
    "model_*",
    "params_*",
)


class GoldenError(Exception):
    """A folder or file that cannot be used, in one line."""


class Recorded(Mapping[str, np.ndarray]):
    """The arrays of one file by name. A missing name is the file's fault, not ours."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray]):
        self.name = name
        self.arrays = arrays

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            raise GoldenError(f"{self.name}: no array {key!r}")
        return self.arrays[key]

    def __contains__(self, key: object) -> bool:  # Mapping's asks for a KeyError
        return key in self.arrays

    def __iter__(self):
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def scalar(self, key: str) -> float:
        value = self[key]
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise GoldenError(f"{self.name}: {key!r} is not a number")
        return float(value.reshape(()))

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose name begins with `prefix/`, by the rest of their name."""
        return {key.removeprefix(f"{prefix}/"): value for key, value in self.items() if key.startswith(f"{prefix}/")}


class Folder:
    """A folder of golden files, all read at once: a file that cannot be read is noticed whatever is compared.

    `skipped` collects, in words, what was there but could not be compared.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if not path.is_dir():
            raise GoldenError(f"{path}: not a folder")
        found = sorted({file for name in KNOWN_FILES for file in path.glob(f"{name}.npz")})
        if not found:
            raise GoldenError(f"{path}: no golden file in it")
        self.files = {file.stem: read(file) for file in found}
        self.skipped: list[str] = []
        self._memo: dict[str, Any] = {}

    def has(self, *names: str) -> bool:
        return all(name in self.files for name in names)

    def kinds(self, prefix: str, *, besides: str = "") -> list[str]:
        """What follows `prefix_` in the names of the files: `model_adaln.npz` is the kind adaln."""
        names = (name for name in self.files if name.startswith(f"{prefix}_") and name != besides)
        return [name.removeprefix(f"{prefix}_") for name in names]

    def skip(self, what: str) -> None:
        if what not in self.skipped:
            self.skipped.append(what)

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """What `compute` returns, computed by the first group that asks."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


def read(path: Path) -> Recorded:
    """The arrays of an npz file, never unpickled."""
    try:
        # Opened here, because numpy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise GoldenError(f"{path.name}: not an npz file")
            return Recorded(path.name, {name: archive[name] for name in archive.files})
    except (OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise GoldenError(f"{path.name}: cannot be read ({' '.join(str(error).split())})") from error


class Comparison(NamedTuple):
    """One array or number compared: what it is, and its error in the measure of the group."""

    what: str
    error: float


Run = Callable[[Folder], Iterable[Comparison]]


@dataclasses.dataclass(frozen=True)
class Group:
    """A row of the table. `run` is None while its subject is not built; `tolerance` 0 means exact.

    `needs` are files without which there is nothing to do; a name ending in `*` asks for at least one such file.
    """

    name: str
    needs: tuple[str, ...]
    tolerance: float
    run: Run | None = None

    def missing(self, folder: Folder) -> list[str]:
        def there(name: str) -> bool:
            if not name.endswith("_*"):
                return folder.has(name)
            return bool(folder.kinds(name.removesuffix("_*"), besides="model_inputs"))

        return [f"{name}.npz" for name in self.needs if not there(name)]


class Result(NamedTuple):
    """What came of a group: ok, FAIL, no file, no case (files without such a case) or not built."""

    group: Group
    status: str
    comparisons: tuple[Comparison, ...] = ()

    @property
    def worst(self) -> Comparison | None:
        return max(self.comparisons, key=lambda comparison: comparison.error, default=None)


def run_group(group: Group, folder: Folder) -> Result:
    """All comparisons of one group. Raises `GoldenError` where the recorded arrays do not fit together."""
    if group.run is None:
        return Result(group, "not built")
    if group.missing(folder):
        return Result(group, "no file")
    try:
        comparisons = tuple(group.run(folder))
    except GoldenError:
        raise
    except Exception as error:
        # Almost always shapes that do not fit; the traceback is for whoever calls this from a test.
        line = " ".join(str(error).split())[:300]
        raise GoldenError(f"{group.name}: {type(error).__name__}: {line}") from error
    if not comparisons:
        return Result(group, "no case")
    good = all(comparison.error <= group.tolerance for comparison in comparisons)
    return Result(group, "ok" if good else "FAIL", comparisons)


def same_shape(ours: Any, recorded: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64. Raises `GoldenError` where the shapes differ, which broadcasting would hide."""
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    if ours.shape != recorded.shape:
        raise GoldenError(f"{what}: recorded with shape {recorded.shape}, we have {ours.shape}")
    if recorded.size == 0 or recorded.dtype.kind not in "biuf":
        raise GoldenError(f"{what}: recorded without numbers")
    return ours.astype(np.float64), recorded.astype(np.float64)


def finite(error: float) -> float:
    """The error, with NaN as infinity: NaN is never within a tolerance, whatever it is compared with."""
    return math.inf if math.isnan(error) else float(error)


def close(what: str, ours: Any, recorded: np.ndarray, *, scale: float | None = None) -> Comparison:
    """Largest difference over max(1, max |recorded|), or over `scale`."""
    ours, recorded = same_shape(ours, recorded, what)
    largest = max(1.0, float(np.max(np.abs(recorded)))) if scale is None else scale
    return Comparison(what, finite(float(np.max(np.abs(ours - recorded))) / largest))


def exact(what: str, ours: Any, recorded: np.ndarray) -> Comparison:
    """How many entries differ."""
    ours, recorded = same_shape(ours, recorded, what)
    return Comparison(what, float(np.sum(ours != recorded)))


def mostly_close(what: str, ours: Any, recorded: np.ndarray, tolerance: float) -> Comparison:
    """The share of entries further off than `tolerance` times max(1, max |recorded|).

    Less than 100 entries count as 100, so that a rule of 99 % lets one of them differ.
    """
    ours, recorded = same_shape(ours, recorded, what)
    limit = tolerance * max(1.0, float(np.max(np.abs(recorded))))
    out = np.sum(~(np.abs(ours - recorded) <= limit))
    return Comparison(what, float(out) / max(recorded.size, 100))
