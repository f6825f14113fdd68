"""Preparation of a data set: writes what is missing, and its metadata once everything is there."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from umd_eqx.core.errors import BadInput
from umd_eqx.data.broken import most_broken
from umd_eqx.data.prepared import read_manifest
from umd_eqx.data.preparing.manifest import claim, finish, is_finished
from umd_eqx.data.preparing.originals import Originals
from umd_eqx.data.preparing.shards import PROGRESS, Facts, Settings, Stopped, estimated_bytes, shards_of
from umd_eqx.data.preparing.workers import Work, write_all


@dataclasses.dataclass(frozen=True)
class Progress:
    """Callbacks: `update` receives the number of images done, `stop` returns whether to stop."""

    update: Callable[[int], None] = lambda done: None
    stop: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The result of a preparation: its manifest, and the facts about all its files (`shards.ensure_shard`).

    `changed` is False if the data set was complete before, and nothing was written.
    """

    manifest: dict[str, Any]
    files: tuple[Facts, ...]
    changed: bool


def prepare(
    originals: Originals,
    settings: Settings,
    folder: Path,
    *,
    workers: int = 1,
    max_broken: int | None = None,
    departures: list[str] | None = None,
    progress: Progress | None = None,
) -> Prepared | None:
    """Writes a data set to a folder, in the format of TFDS.

    Files that are there are kept if their content has not changed. However often this is interrupted and repeated, and
    whatever the number of processes, the folder holds the same bytes at the end.

    **Arguments:**

    - `originals`: the images, from `find_originals`.
    - `settings`: what the result depends on; `settings.source` is the `fingerprint` of the images.
    - `folder`: an existing folder that is empty, or one in which this was begun with the same settings.
    - `workers`: the number of processes.
    - `max_broken`: the number of unreadable images of a split that are left out before this stops (`most_broken`).
    - `departures`: recorded in the manifest (`canonical.departures`).
    - `progress`: callbacks.

    **Returns:** the result, or None if stopped by `progress.stop`.

    **Raises:** `BadInput` as `claim` does, for a disk with too little space, and for too many broken images.
    """
    progress = Progress() if progress is None else progress
    known, before = claim(folder, settings), is_finished(folder)
    shards = shards_of(settings, originals)
    _require_space(originals, settings, folder, {shard.name for shard in shards if (folder / shard.name).exists()})
    most = {split: most_broken(max_broken, len(some.rows)) for split, some in originals.splits.items()}
    done = 0

    def seen(more: int) -> None:
        nonlocal done
        done += more
        progress.update(done)

    writing = write_all(Work(settings, originals, folder, shards, known), workers, seen, progress.stop)
    try:
        files = _collected(writing, most)
    except Stopped:
        return None
    finally:
        writing.close()
    for split, some in originals.splits.items():
        mine = [facts for facts in files if facts["split"] == split]
        if not any(facts["records"] for facts in mine):
            last = next(facts["broken"][-1] for facts in reversed(mine) if facts["broken"])
            problem = f"all {len(some.rows)} images of the split {split} are broken"
            raise BadInput("src", f"{problem}; the last: {': '.join(last[:2])}", "Repair the images")
    manifest = read_manifest(folder)
    if before and manifest is not None and all(facts["kept"] for facts in files):
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
        return Prepared(manifest, tuple(files), changed=False)
    return Prepared(finish(folder, settings, originals, files, departures or []), tuple(files), changed=True)


def _collected(writing: Iterable[Facts], most: Mapping[str, int]) -> list[Facts]:
    """Returns the facts of all files. Raises `BadInput` if more than `most` images of a split are broken."""
    files: list[Facts] = []
    broken = dict.fromkeys(most, 0)
    for facts in writing:
        files.append(facts)
        split = facts["split"]
        broken[split] += len(facts["broken"])
        if broken[split] > most[split]:
            name, problem, *place = facts["broken"][-1]
            count = f"{broken[split]} broken images, more than {most[split]}, in {split}; the last"
            last = f"{place[0] if place else name}: {problem}"
            raise BadInput("max_broken", f"{count}: {last}", "Repair the images, or allow more")
    return files


def _require_space(originals: Originals, settings: Settings, folder: Path, there: set[str]) -> None:
    """Raises `BadInput` naming `out` if the disk of a folder has too little space for the files that are missing."""
    missing = dict.fromkeys(originals.splits, 0)
    for shard in shards_of(settings, originals):
        missing[shard.split] += 0 if shard.name in there else shard.stop - shard.start
    need = 0
    for split, some in originals.splits.items():
        need += estimated_bytes(settings, some, originals.channels) * missing[split] // max(len(some.rows), 1)
    free = shutil.disk_usage(folder).free
    if free < need:
        problem = f"the disk of {folder} has {free / 1e9:,.1f} GB free, but up to {need / 1e9:,.1f} GB are needed"
        raise BadInput("out", problem, "Free some space, choose another disk, or downsample by `size=64`")
