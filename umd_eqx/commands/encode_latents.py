"""`experiments/encode_latents.py`: encodes a data set into latents once, for use by any number of runs."""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro

from umd_eqx.commands.leaves import KINDS, choose
from umd_eqx.core.errors import BadInput, disk_errors, require_local, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.peers import leave_together
from umd_eqx.core.processes import ProcessesConfig, from_first, is_first
from umd_eqx.core.sharding import make_mesh
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.source_configs import SOURCES, TFDS, AbstractSource
from umd_eqx.latents.encoding import Progress, encode, prepare, share
from umd_eqx.latents.store import MANIFEST, Manifest, Settings, source_hash
from umd_eqx.recipes.config import DataConfig
from umd_eqx.report import Terminal
from umd_eqx.runs.lock import locked
from umd_eqx.runs.tokenizers import LoadedTokenizer, load_tokenizer
from umd_eqx.training.signals import EXIT_STOPPED, Stop


@dataclasses.dataclass(frozen=True)
class EncodedData:
    """The images to encode."""

    source: Annotated[AbstractSource, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TFDS)
    """The source of the images; its fields are separate flags, such as --data.dir."""
    split: str = "train"
    """The split to encode, such as train[:99%]."""
    size: int = 28
    """Side of the square images after cropping, in pixels."""
    area_min: float | int = 100.0
    """Smallest area of a random crop, in percent of the image. 100: the centre crop used for evaluation."""
    flip: bool = False
    """Flip views horizontally with probability 1/2."""
    max_broken: int | None = None
    """Maximum number of images with unreadable data or an invalid label; others replace them. More is an error. None:
    1 % of the split, and at least 10."""


@dataclasses.dataclass(frozen=True)
class EncodeLatents:
    """Encode a data set once, with several augmented views of each image."""

    tokenizer: Annotated[str, tyro.conf.arg(help="The tokenizer: a run directory, an export, or the folder of a VAE.")]
    out: Annotated[str, tyro.conf.arg(help="The output folder. An unfinished one with the same settings is resumed.")]
    data: EncodedData = dataclasses.field(default_factory=EncodedData)
    views: int = 1
    """Number of augmented views of each image; each training step draws one of them."""
    mode_only: bool = False
    """Store only the posterior mode of each view, without the log-variance: half the size."""
    half: bool = False
    """Store latents in float16: half the size."""
    seed: int = 0
    """Random seed of the augmentation."""
    batch_size: int = 256
    """Number of views encoded at once, over all devices."""
    per_shard: int = 2048
    """Number of images per file."""
    workers: int = 2
    """Number of threads that prefetch images."""
    limit: int | None = None
    """Encode only this many images, from the start of the split. None: all of them."""
    processes: Annotated[ProcessesConfig, tyro.conf.arg(name="sharding")] = dataclasses.field(
        default_factory=ProcessesConfig
    )
    json: str | None = None
    """Write a summary to this JSON file: images, views, bytes, mean, standard deviation, seconds, views per second."""


@dataclasses.dataclass(frozen=True)
class _Images:
    data: EncodedData


def encode_latents(words: list[str], data: EncodedData | None = None) -> int:
    """Runs the command and returns its exit code: 75 if a signal stopped it, and the same command resumes it.

    `data` holds the default values of the data flags. None: the images included in the package.

    **Raises:** `BadInput` naming the invalid flag.
    """
    images, words, _ = choose(_Images(data or EncodedData()), words, KINDS)
    make = functools.partial(EncodeLatents, data=images.data, processes=ProcessesConfig())
    what = f"Encode a data set into latents, to train on. --data.source is one of {', '.join(SOURCES)}."
    command = tyro.cli(make, args=words, description=what)
    _validate(command)
    require_local("out", command.out)
    folder, data = Path(command.out), command.data
    loaded = load_tokenizer(command.tokenizer)
    images = data.source.located().open(data.split, field="data.split")
    source = SkipBroken(images, data.max_broken, split=data.split)
    if source.spec.channels != loaded.tokenizer.channels:
        name, channels = source.spec.name, source.spec.channels
        problem = f"it encodes images with {loaded.tokenizer.channels} channels, but {name} has {channels}"
        raise BadInput("tokenizer", problem, "Choose another tokenizer")
    if data.size % loaded.tokenizer.factor:
        factor = loaded.tokenizer.factor
        problem = f"{data.size} is not a multiple of the tokenizer's downsampling factor, {factor}"
        raise BadInput("data.size", problem, f"Use a multiple of {factor}")
    settings = _settings(command, loaded, source)
    if command.views > 1 and data.area_min == 100 and not data.flip:
        print("note: without augmentation all views of an image are identical: see --data.area-min and --data.flip")
    print(f"{loaded.title}; {settings.images:,} images of {settings.name}, {settings.views} views each: {folder}")
    with disk_errors(folder, "out", "it resumes at the first missing shard"), contextlib.ExitStack() as stack:
        missing, complete = from_first(lambda: _missing(folder, settings, stack))
        left = sum(len(settings.shards[shard]) for shard in share(missing))
        if complete:
            manifest = Manifest.read(folder, "out")
            print(f"{folder} is complete: {_summary(manifest)}")
            _write_figures(command, manifest, 0, 0.0)
            return 0
        there = settings.images - left
        if there:
            print(f"{there:,} images are already encoded")
        began = time.perf_counter()
        terminal = Terminal(settings.images, start=there, work="encoding", unit="image")
        with terminal, Stop(_StopMessage(terminal)) as stop:
            terminal.phase("compiling")
            progress = Progress(lambda done: terminal.update(done, {}), lambda: stop.signal_name is not None)
            options = {"batch_size": command.batch_size, "threads": command.workers, "progress": progress}
            options |= {"missing": missing, "mesh": make_mesh(jax.local_devices())}
            manifest = encode(source, loaded.tokenizer, settings, folder, **options)
        seconds = time.perf_counter() - began
        if manifest is None:
            said = f"stopped by {stop.signal_name}: complete shards are kept. The same command resumes it"
            leave_together(said, EXIT_STOPPED)
            print(said)
            return EXIT_STOPPED
        print(f"{_summary(manifest)}; {seconds:.0f} s, {left * settings.views / seconds:,.0f} views per second")
        _write_figures(command, manifest, left, seconds)
    return 0


def _missing(folder: Path, settings: Settings, stack: contextlib.ExitStack) -> tuple[list[int], bool]:
    """Locks the folder until the end of `stack`; returns the missing shards, and whether nothing is left to do."""
    stack.enter_context(locked(folder, "out"))
    missing = prepare(folder, settings)
    return missing, not missing and (folder / MANIFEST).exists()


def _write_figures(command: EncodeLatents, manifest: Manifest, encoded: int, seconds: float) -> None:
    """Writes the file of `--json`; this call encoded `encoded` images in `seconds`, and earlier calls the others."""
    if command.json is None or not is_first():
        return
    there, folder = manifest.settings, Path(command.out)
    figures = {
        "images": there.images,
        "views": there.views,
        "bytes": sum((folder / there.shard_name(i)).stat().st_size for i in range(len(there.shards))),
        "mean": manifest.mean,
        "std": manifest.std,
        "encoded": encoded,
        "seconds": seconds,
        "views_per_s": encoded * there.views / seconds if seconds else None,
    }
    save_json(Path(command.json), [figures])


class _StopMessage:
    """The message shown when a signal arrives."""

    def __init__(self, terminal: Terminal):
        self._terminal = terminal

    def __call__(self, text: str) -> None:
        self._terminal.warn(f"{text.partition(':')[0]}: stopping after this batch")


def _summary(manifest: Manifest) -> str:
    there = manifest.settings
    return f"{there.images:,} images, {there.views} views each, mean {manifest.mean:.4f}, std {manifest.std:.4f}"


def _settings(command: EncodeLatents, loaded: LoadedTokenizer, source: SkipBroken) -> Settings:
    data, tokenizer = command.data, loaded.tokenizer
    side = data.size // tokenizer.factor
    point = tokenizer.encode_raw(jnp.zeros((tokenizer.factor, tokenizer.factor, tokenizer.channels))).logvar is None
    dtype: Literal["float32", "float16"] = "float16" if command.half else "float32"
    return Settings(
        name=source.spec.name,
        split=data.split,
        source=source_hash(source),
        tokenizer=loaded.digest,
        shift=tokenizer.shift,
        scale=tokenizer.scale,
        size=data.size,
        area_min=data.area_min,
        flip=data.flip,
        seed=command.seed,
        views=command.views,
        shape=(side, side, tokenizer.latent_channels),
        mode_only=command.mode_only or point,
        dtype=dtype,
        images=len(source) if command.limit is None else min(command.limit, len(source)),
        per_shard=command.per_shard,
    )


def _validate(command: EncodeLatents) -> None:
    for name in ("views", "batch_size", "per_shard", "workers", "limit"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise BadInput(name, f"{value} is too small", "Use 1 or more")
    if not 0 <= command.seed < 2**32:
        raise BadInput("seed", f"{command.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
    data, mesh = command.data, make_mesh(jax.local_devices())
    sizes = {"size": data.size, "area_min": data.area_min, "max_broken": data.max_broken}
    DataConfig(**sizes, batch_size=mesh.size, eval_batch_size=mesh.size).validate(mesh)
    if command.json is not None:
        require_writable("json", command.json)
