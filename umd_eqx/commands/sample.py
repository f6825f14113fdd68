"""`experiments/sample.py`: writes a grid of samples and, optionally, their denoising trajectories."""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from jaxtyping import Int

from umd_eqx.commands.leaves import parse
from umd_eqx.commands.results import of_run
from umd_eqx.commands.sampling import Flags, SamplingFlags, Types, sampling_kinds
from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import NO_CLASS
from umd_eqx.eval.base import decoded
from umd_eqx.eval.generation import trajectory_grid
from umd_eqx.eval.pictures import grid
from umd_eqx.models.tokenizers.base import Identity
from umd_eqx.report import Terminal, save_png
from umd_eqx.runs.pretrained import Pretrained
from umd_eqx.sampling import sample as sample_images

SHOWN_TRAJECTORIES, TRAJECTORY_FRAMES = 8, 12


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sample images from a trained network, and write them as an image grid."""

    flags: Flags = dataclasses.field(default_factory=SamplingFlags)
    label: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = ()
    """Class labels to sample, used in turn. None: all classes in turn, one column per class."""
    num: int = 64
    """Number of images."""
    out: str = "samples.png"
    """Output file for the image grid."""
    trajectory: Annotated[str | None, tyro.conf.arg(aliases=["--film"])] = None
    """Also write the denoising trajectories of the first samples to this file, one per row."""
    json: str | None = None
    """Write a summary to this JSON file: images, seconds, network evaluations, and the results of the run."""


def sample(words: list[str], types: Types | None = None) -> int:
    """Runs the sampling command and returns its exit code. `types` are user-defined classes by name.

    **Raises:** `BadInput` naming the invalid flag, before anything is computed.
    """
    types = types or {}
    description = "Sample images from a trained network, and write them as an image grid."
    command = parse(Sample, words, sampling_kinds(types), default=Sample(), description=description)
    flags = command.flags
    if command.num < 1:
        raise BadInput("num", f"{command.num} is not a valid number of images", "Use 1 or more")
    for flag, name in (("out", command.out), ("trajectory", command.trajectory), ("json", command.json)):
        if name is not None:
            require_writable(flag, name)
    flags.validate()
    source = flags.source(types)
    labels = _labels(command, source)
    denoiser, sampler = flags.guided(source, flags.weaker(source, types))
    print(flags.describe(source, types))
    for warning in flags.warnings(source):
        print(f"warning: {warning}", file=sys.stderr)
    key, began = jax.random.key(flags.seed), time.perf_counter()
    with Terminal(command.num, work="sampling", unit="image") as terminal:
        terminal.phase("compiling")
        images = sample_images(
            *(denoiser, sampler, labels, key),
            batch_size=min(flags.batch_size, command.num),
            mesh=make_mesh(),
            progress=lambda done, _: terminal.update(done, {}),
        )
        tokenizer = source.tokenizer or Identity.init(source.spec.channels)
        images = np.concatenate(list(decoded(tokenizer, images, flags.batch_size, make_mesh())))
    seconds = time.perf_counter() - began
    columns = _columns(command, source)
    blank = [np.ones_like(images[0])] * (-len(images) % columns)
    rows = [*images, *blank]
    with disk_errors(Path(command.out).parent, "out", on_retry=""):
        save_png(command.out, grid([rows[i : i + columns] for i in range(0, len(rows), columns)]))
        if command.trajectory is not None:
            shown = labels[:SHOWN_TRAJECTORIES]
            trajectories = trajectory_grid(denoiser, sampler, tokenizer, shown, key, TRAJECTORY_FRAMES)
            save_png(command.trajectory, trajectories)
        if command.json is not None:
            figures = {"images": command.num, "seconds": seconds, "evaluations": sampler.evaluations(denoiser)}
            save_json(command.json, [{**figures, "run": of_run(flags.run, types.values())}])
    print(f"{command.num} images in {seconds:.1f} s, compilation included: {command.out}")
    return 0


def _labels(command: Sample, source: Pretrained) -> Int[np.ndarray, "num"]:
    classes = source.model.num_classes
    if classes is None:
        if command.label:
            raise BadInput("label", "the network is not class-conditional", "Fine-tune it, or omit `label`")
        return np.full(command.num, NO_CLASS)
    for label in command.label:
        if not 0 <= label < classes:
            raise BadInput("label", f"{label} is not a class of {source.spec.name}", f"Use 0 .. {classes - 1}")
    return np.resize(np.asarray(command.label or range(classes)), command.num)


def _columns(command: Sample, source: Pretrained) -> int:
    """The number of columns: one per label if there are 2 to 20 labels, otherwise that of a square grid."""
    classes = source.model.num_classes
    each = len(command.label) or classes or 0
    return min(each, command.num) if 1 < each <= 20 else math.ceil(math.sqrt(command.num))
