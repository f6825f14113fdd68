"""`experiments/reference_statistics.py`: computes the features of real images, which metrics compare with, once."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Annotated

import tyro

from umd_eqx.commands.leaves import KINDS, choose
from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.data.broken import CountBroken
from umd_eqx.data.source_configs import SOURCES, TFDS, AbstractSource
from umd_eqx.eval import EvalContext
from umd_eqx.eval.activations import BATCH
from umd_eqx.eval.extractors import ExtractorName, choose_extractor
from umd_eqx.eval.generation import PROTOCOLS, ProtocolName
from umd_eqx.eval.generation_metrics import ReferenceStatistics
from umd_eqx.eval.protocol import statistics_hash
from umd_eqx.eval.statistics_file import save_statistics
from umd_eqx.report import Terminal


@dataclasses.dataclass(frozen=True)
class ReferenceData:
    """The real images."""

    source: Annotated[AbstractSource, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TFDS)
    """The source of the images; its fields are separate flags, such as --data.dir."""
    split: str | None = None
    """The split, such as train[:99%]. None: that of the protocol, test (or validation) or train."""
    size: int = 28
    """Side of the generated images, in pixels, to which the real ones are resized."""
    workers: int = 2
    """Number of threads that prefetch images."""
    max_broken: int | None = None
    """Maximum number of unreadable images. More is an error. None: 1 % of the split, and at least 10."""


@dataclasses.dataclass(frozen=True)
class MakeStatistics:
    """Compute the statistics of real images once, for evaluate.py and for evaluations during training."""

    out: Annotated[str, tyro.conf.arg(help="The output file, ending in .safetensors.")]
    data: ReferenceData = dataclasses.field(default_factory=ReferenceData)
    protocol: ProtocolName = "umd10k"
    """The protocol, which says how real images are resized, and how many rows of features are kept."""
    extractor: ExtractorName = "auto"
    """The feature extractor. auto: Inception if its weights are found, otherwise the included classifier."""
    inception_weights: str | None = None
    """Safetensors file made by experiments/convert_inception.py. None: the one in the cache folder."""
    json: str | None = None
    """Write a summary to this JSON file: what the statistics depend on, their hash, seconds, images per second."""


@dataclasses.dataclass(frozen=True)
class _Data:
    data: ReferenceData


def make_statistics(words: list[str]) -> int:
    """Runs the command and returns its exit code. Raises `BadInput` naming the invalid flag."""
    chosen, words, _ = choose(_Data(ReferenceData()), words, KINDS)
    what = f"Compute the statistics of real images once. --data.source is one of {', '.join(SOURCES)}."
    command = tyro.cli(functools.partial(MakeStatistics, data=chosen.data), args=words, description=what)
    _validate(command)
    data, protocol = command.data, PROTOCOLS[command.protocol]
    split = data.split or ("train" if protocol.reference == "train" else "test")
    images = CountBroken(data.source.located().open(split, field="data.split"), data.max_broken, split=split)
    extractor = choose_extractor(command.extractor, command.inception_weights, images.spec, port=protocol.port)
    mesh, began = make_mesh(), time.perf_counter()
    with Terminal(len(images), work="features", unit="image") as terminal:
        context = EvalContext(
            *(images, images, CosineTable(), data.size, round_up_to_devices(BATCH, mesh), mesh),
            threads=data.workers,
            notify=terminal.print,
            phase=lambda text: _show(terminal, text),
        )
        reference = ReferenceStatistics(context, protocol, extractor)
        origin, features = reference.origin, reference.real
    with disk_errors(command.out, "out", on_retry=""):
        save_statistics(command.out, features, origin)
    seconds = time.perf_counter() - began
    count, digest = features.statistics.count, statistics_hash(features.statistics)
    about = f"{count:,} images of {origin.data} ({split}) at {data.size} px, {extractor.name}"
    print(f"{command.out}: {about}, SHA-256 {digest[:16]}; {seconds:.0f} s")
    if command.json is not None:
        rate = {"seconds": seconds, "images_per_s": count / seconds}
        with disk_errors(Path(command.json).parent, "json", on_retry=""):
            save_json(command.json, [{**dataclasses.asdict(origin), "count": count, "sha256": digest, **rate}])
    return 0


def _show(terminal: Terminal, text: str) -> None:
    """Shows progress, "features of real images: 64/1,024", with the remaining time."""
    done = text.rpartition(": ")[2].partition("/")[0].replace(",", "")
    terminal.update(int(done), {})


def _validate(command: MakeStatistics) -> None:
    data = command.data
    for name in ("size", "workers"):
        if getattr(data, name) < 1:
            raise BadInput(f"data.{name}", f"{getattr(data, name)} is too small", "Use 1 or more")
    if data.max_broken is not None and data.max_broken < 0:
        raise BadInput("data.max_broken", f"{data.max_broken} is negative", "Use 0 or more")
    if not command.out.endswith(".safetensors"):
        raise BadInput("out", f"{command.out} does not end in .safetensors", "Choose such a name")
    require_writable("out", command.out)
    if command.json is not None:
        require_writable("json", command.json)
