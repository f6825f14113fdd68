"""Digests of the code that results depend on: those of older code are not used."""

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

from faults.suite.base import Fault

ROOT = Path(__file__).resolve().parents[3]
"""The root of the repository."""


def code_digest(fault: Fault, faults: Sequence[Fault]) -> str:
    """Returns the digest of the package, of the helpers of the suite, and of the fault's own module."""
    others = {Path(inspect.getfile(other.trials)).resolve() for other in faults}
    others -= {Path(inspect.getfile(fault.trials)).resolve()}
    helpers = [path for path in (ROOT / "tests/faults").rglob("*.py") if path.resolve() not in others]
    return _digest([*(ROOT / "umd_eqx").rglob("*.py"), *helpers])


def reference_folder(work: Path) -> Path:
    """Returns the folder in a work folder for runs that trials of several faults share, made by this code."""
    paths = [*(ROOT / "umd_eqx").rglob("*.py"), *(ROOT / "tests/faults").glob("tiny*.py")]
    folder = work / f"reference-{_digest(paths)}"
    folder.mkdir(exist_ok=True)
    return folder


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        if not path.name.startswith("test_") and path.name != "__init__.py":
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
