"""Copies of the checkpoints of a run at a URL, each with the files of the run that resuming needs.

For each step there are a folder, `<step>/`, with the files of the checkpoint, and `<step>.zip`, an uncompressed archive
of the other files of the run. The archive is written last, in one operation: without it, an upload is incomplete, and
whatever is there is never taken for a checkpoint. The files are compared with the checkpoint's seal after they were
fetched, and the archive has checksums of its own. Copied by hand, `<step>/` goes to `checkpoints/<step>/` of a new run
directory, in which the archive is unpacked.
"""

import io
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from umd_eqx.core.json_files import parse_json
from umd_eqx.core.remote import Remote, is_inner_name
from umd_eqx.training.checkpoint import SEAL, damage_of

FACTS = "mirror.json"
"""The entry of an archive that names its step and its other entries."""

RUN_FILES = ("pending.json", "config.json", "environment.json", "metrics.jsonl", "results.json")
"""The files of a run in an archive, read in this order: a row leaves pending.json once it is in metrics.jsonl."""

_PICTURE = re.compile(r"pictures/[^/]+/\d+\.png")
_UNREADABLE = (zipfile.BadZipFile, struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_MOST_ARCHIVE = 1 << 30
_THREADS = 4


class Damaged(Exception):
    """Raised for a copy that is incomplete or damaged, or that of another step."""


def pack(run_dir: Path, step: int) -> bytes:
    """Returns the archive of the files of a run beside its checkpoints: those of `RUN_FILES` and the pictures.

    The same files make the same bytes.
    """
    pictures = sorted(path.relative_to(run_dir).as_posix() for path in (run_dir / "pictures").glob("*/*.png"))
    files = {}
    for name in (*RUN_FILES, *filter(_PICTURE.fullmatch, pictures)):
        try:
            files[name] = (run_dir / name).read_bytes()
        except FileNotFoundError:
            continue
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        facts = {"format": 1, "step": step, "files": [*files]}
        for name, data in {FACTS: json.dumps(facts).encode(), **files}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()


def unpack(archive: bytes, step: int) -> dict[str, bytes]:
    """Returns the files of a run by name, as `pack` archived them. Raises `Damaged`; allocates no more than they take.

    An archive with a file of any other name, with a compressed one, or of another step is refused.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            entries = opened.infolist()
            for entry in entries:
                known = entry.filename in (FACTS, *RUN_FILES) or _PICTURE.fullmatch(entry.filename)
                if not known or not is_inner_name(entry.filename) or entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"unexpected entry {entry.filename[:80]!r}")
            if sum(entry.file_size for entry in entries) > len(archive):
                raise ValueError("entries overlap")
            files = {entry.filename: opened.read(entry) for entry in entries}  # compares their checksums
        facts = parse_json(files.pop(FACTS))
        if sorted(facts["files"]) != sorted(files):
            raise ValueError("entries are missing")
        if facts["step"] != step:
            raise Damaged(f"{step}.zip is the archive of another step, renamed")
    except (*_UNREADABLE, EOFError, RuntimeError, OSError) as error:
        raise Damaged(f"its archive {step}.zip is damaged") from error
    return files


class Mirror:
    """The copies at a URL.

    **Arguments:**

    - `remote`: the folder, of this run alone.
    - `moved`: called after each file is copied, from any thread.
    """

    def __init__(self, remote: Remote, moved: Callable[[], None] = lambda: None):
        self.remote, self._moved = remote, moved

    @property
    def url(self) -> str:
        """The folder's URL."""
        return self.remote.url

    def steps(self) -> dict[int, bool]:
        """Returns the steps of which there is anything, newest first, with whether each upload is complete."""
        there = self.remote.list()
        numbers = {name.removesuffix(".zip"): None for name in there}
        found = sorted((int(number) for number in numbers if _is_step(number)), reverse=True)
        return {step: there.get(f"{step}.zip") is not None for step in found}

    def run_files(self, step: int) -> dict[str, bytes]:
        """Returns the files of the run by name, as they were with this step. Raises `Damaged`."""
        name = f"{step}.zip"
        try:
            if (self.remote.list().get(name) or 0) > _MOST_ARCHIVE:
                raise Damaged(f"its archive {name} is too large")
            return unpack(self.remote.read(name), step)
        except FileNotFoundError as error:
            raise Damaged("its upload was interrupted") from error

    def fetch(self, step: int, folder: Path, before: Callable[[Mapping[str, int]], None] = lambda _: None) -> None:
        """Copies a checkpoint to a new local folder and verifies it. Raises `Damaged`.

        `before` is called with the sizes in bytes of the files that are there, by name.
        """
        inner = Remote(f"{self.url}/{step}", "checkpoint.mirror")
        try:
            names = [*_sealed_files(inner.read(SEAL)), SEAL]
            before(inner.sizes())
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda name: self._moving(inner.download, name, folder / name), names))
        except FileNotFoundError as error:
            raise Damaged("a file is missing") from error
        if (damage := damage_of(epath.Path(folder), step)) is not None:
            raise Damaged(damage)

    def put(self, step: int, checkpoint: Path, archive: bytes) -> None:
        """Copies a sealed checkpoint and the archive of the run. What an interrupted upload left is replaced.

        A checkpoint that is there already, by its seal, is not copied again.
        """
        inner, seal = Remote(f"{self.url}/{step}", "checkpoint.mirror"), (checkpoint / SEAL).read_bytes()
        if not (self.remote.exists(f"{step}.zip") and inner.exists(SEAL) and inner.read(SEAL) == seal):
            self.drop(step)
            files = [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()]
            with ThreadPoolExecutor(_THREADS) as pool:
                pairs = ((checkpoint / name, name) for name in files if name != SEAL)
                list(pool.map(lambda pair: self._moving(inner.upload, *pair), pairs))
            inner.write(SEAL, seal)
        self.refresh(step, archive)

    def refresh(self, step: int, archive: bytes) -> None:
        """Replaces the archive of a checkpoint that is copied already."""
        self.remote.write(f"{step}.zip", archive)
        self._moved()

    def prune(self, newest: int, keep: int) -> None:
        """Deletes the copies before step `newest`, but for those of the last `keep` steps with that one.

        Later steps are left: they belong to a run that was set back, and are replaced when it reaches them.
        """
        older = {step: complete for step, complete in self.steps().items() if step <= newest}
        kept = [step for step, complete in older.items() if complete][:keep]
        for step in older:
            if step not in kept:
                self.drop(step)

    def drop(self, step: int) -> None:
        """Deletes a copy, first the archive that makes it complete."""
        self.remote.delete(f"{step}.zip")
        self.remote.delete(str(step))

    def _moving(self, move: Callable[..., None], *given: str | Path) -> None:
        move(*given)
        self._moved()


def link_tree(source: Path, target: Path) -> None:
    """Makes a copy of a local folder that keeps its files when the original is deleted, without their bytes if it can.

    Raises `FileNotFoundError` if the folder is deleted meanwhile.
    """
    for path in sorted(source.rglob("*")):
        new = target / path.relative_to(source)
        if path.is_file():
            new.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, new)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links
                shutil.copyfile(path, new)
    if not (target / SEAL).exists():
        raise FileNotFoundError(os.fspath(source))


def _sealed_files(seal: bytes) -> list[str]:
    try:
        files = parse_json(seal)["files"]
        if isinstance(files, dict) and all(map(is_inner_name, files)):
            return list(files)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise Damaged(f"the file {SEAL} is damaged")


def _is_step(name: str) -> bool:
    return re.fullmatch(r"0|[1-9]\d{0,15}", name, re.ASCII) is not None
