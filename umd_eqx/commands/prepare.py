"""`experiments/prepare.py`: converts original images to a TFDS data set in array_record files, without TensorFlow."""

import dataclasses
import os
import re
import time
from pathlib import Path
from typing import Annotated

import tyro

from umd_eqx.core.errors import BadInput, disk_errors, require_local, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.data.preparing.canonical import IMAGENET, VERSION, departures
from umd_eqx.data.preparing.encoding import Resize
from umd_eqx.data.preparing.originals import Originals, find_originals
from umd_eqx.data.preparing.prepare import Prepared, Progress, prepare
from umd_eqx.data.preparing.shards import Settings, fingerprint
from umd_eqx.report import Terminal
from umd_eqx.runs.lock import locked
from umd_eqx.training.signals import EXIT_STOPPED, Stop

_SHOWN = 5
"""How many broken images are printed; the manifest has all of them."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Convert original images to a TFDS data set that --data.dir reads."""

    src: Annotated[str, tyro.conf.arg(help="The folder of ImageNet's archives, or of other images with labels.")]
    out: Annotated[str, tyro.conf.arg(help="The TFDS root to write to. The same command resumes an unfinished one.")]
    name: Annotated[str, tyro.conf.arg(help="Name of the data set, such as imagenet2012, and of its folder in `out`.")]
    size: int | None = None
    """Side of the square that images are downsampled to, in pixels. None: images are stored as they are."""
    resize: Resize | None = None
    """How they are downsampled: box averages the whole image (as the ImageNet64 of arXiv 1707.08819), adm crops the
    centre as ADM does. None: box, with `size`."""
    validation_labels: str | None = None
    """File of the labels of ImageNet's validation images. None: it is found beside them."""
    workers: int = os.cpu_count() or 1
    """Number of processes. The result does not depend on it."""
    per_shard: int | None = None
    """Number of images per file. None: as many files as TFDS would write."""
    max_broken: int | None = None
    """Number of unreadable images of each split that are left out. More is an error. None: 1 % of the split, and at
    least 10."""
    json: str | None = None
    """Write a summary to this JSON file: images, broken and converted ones, bytes, SHA-256, seconds, images/s."""


def prepare_data(words: list[str]) -> int:
    """Runs the command and returns its exit code: 75 if a signal stopped it, and the same command resumes it.

    **Raises:** `BadInput` naming the invalid flag.
    """
    what = "Convert original images, such as ImageNet's archives, to a TFDS data set that --data.dir reads."
    command = tyro.cli(Prepare, args=words, description=what)
    _validate(command)
    print(f"looking for images in {command.src}", flush=True)
    originals = find_originals(command.src, command.validation_labels)
    version = VERSION if command.name == IMAGENET else "1.0.0"
    resize = None if command.size is None else command.resize or "box"
    settings = Settings(command.name, version, command.size, resize, command.per_shard, fingerprint(originals))
    folder = Path(command.out).expanduser() / command.name / version
    counts = {split: len(some.rows) for split, some in originals.splits.items()}
    differing = departures(originals.classes, counts) if command.name == IMAGENET else []
    _describe(originals, counts, differing)
    with disk_errors(command.out, "out", "it resumes at the first missing file"), locked(folder, "out"):
        began = time.perf_counter()
        terminal = Terminal(sum(counts.values()), work="preparing", unit="image")
        with terminal, Stop(_StopMessage(terminal)) as stop:
            progress = Progress(lambda done: terminal.update(done, {}), lambda: stop.signal_name is not None)
            limits = {"workers": command.workers, "max_broken": command.max_broken}
            found = prepare(originals, settings, folder, **limits, departures=differing, progress=progress)
        seconds = time.perf_counter() - began
        if found is None:
            print(f"stopped by {stop.signal_name}: complete files are kept. The same command resumes it")
            return EXIT_STOPPED
    _report(command, folder, found, seconds)
    return 0


class _StopMessage:
    """The message shown when a signal arrives."""

    def __init__(self, terminal: Terminal):
        self._terminal = terminal

    def __call__(self, text: str) -> None:
        self._terminal.warn(f"{text.partition(':')[0]}: stopping; unfinished files are written again by the next call")


def _validate(command: Prepare) -> None:
    for name in ("size", "workers", "per_shard"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise BadInput(name, f"{value} is too small", "Use 1 or more")
    if command.resize is not None and command.size is None:
        raise BadInput("resize", "images are downsampled only to a given size", "Give `size`, too")
    if command.max_broken is not None and command.max_broken < 0:
        raise BadInput("max_broken", f"{command.max_broken} is negative", "Use 0 or more")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", command.name):
        problem = f"{command.name!r} is not a valid name"
        raise BadInput("name", problem, "Use lower-case letters, digits and underscores, such as imagenet2012")
    require_local("out", command.out)
    if os.path.exists(command.out) and not os.path.isdir(command.out):
        raise BadInput("out", f"{command.out} is not a folder", "Choose another")
    if command.json is not None:
        require_writable("json", command.json)


def _describe(originals: Originals, counts: dict[str, int], differing: list[str]) -> None:
    held = ", ".join(f"{count:,} in {split}" for split, count in counts.items())
    print(f"{sum(counts.values()):,} images ({held}), {len(originals.classes):,} classes")
    for note in originals.notes:
        print(f"note: {note}")
    if differing:
        print(f"warning: this is not the whole of {IMAGENET}: {'; '.join(differing)}")


def _report(command: Prepare, folder: Path, found: Prepared, seconds: float) -> None:
    manifest, files = found.manifest, found.files
    broken = [entry for facts in files for entry in facts["broken"]]
    converted = [entry for facts in files for entry in facts["converted"]]
    for name, problem, *_ in broken[:_SHOWN]:
        print(f"left out: {name}: {problem}")
    if len(broken) > _SHOWN:
        print(f"left out: {len(broken) - _SHOWN:,} more, which are listed in {folder / 'manifest.json'}")
    if converted:
        print(f"converted: {len(converted):,} images of other formats, such as {converted[0][0]} ({converted[0][1]})")
    kept = sum(facts["kept"] for facts in files)
    total = sum(facts["bytes"] for facts in files)
    written = f"{total / 1e9:,.2f} GB" if total >= 1e8 else f"{total / 1e6:,.1f} MB"
    what = f"is complete, {written}" if found.changed else "was complete, and nothing was changed"
    print(f"{folder} {what}: {len(files):,} files, of which {kept:,} were there; SHA-256 {manifest['sha256'][:16]}")
    print(f"train on it with --data.name {command.name} --data.dir {command.out}")
    if command.json is None:
        return
    new = sum(facts["records"] for facts in files if not facts["kept"])
    figures = {
        "images": manifest["images"],
        "broken": len(broken),
        "converted": len(converted),
        "departures": manifest["departures"],
        "bytes": total,
        "files": len(files),
        "kept": kept,
        "sha256": manifest["sha256"],
        "seconds": seconds,
        "images_per_s": new / seconds if new else None,
    }
    with disk_errors(Path(command.json).parent, "json", on_retry=""):
        save_json(Path(command.json), [figures])
