"""Images per second of the input pipeline, beside tf.data, Pillow and PyTorch's DataLoader.

    python benchmarks/data.py [--seconds 6] [--tf-python PATH] [--torch-python PATH] [--json FILE]

All pipelines make random-resized crops of 64 px from the same JPEGs of about 100 KB (500 x 375 pixels, synthetic, with
the spectrum of photographs). `images_per_s` is per core: images per second of CPU time, of all threads and processes
of a pipeline, which a busy machine disturbs less than the time by the clock (`wall_images_per_s`). `ratio` is relative
to tf.data, or to Pillow where there is no TensorFlow; more than 1 is faster. The pipelines take turns, each in a
process of its own. TensorFlow and PyTorch may be installed in environments of their own, whose interpreters are given.
Then the memory of a pipeline is watched for `--memory-seconds`, and its slope in the second half of the batches
printed. CPU times need Linux.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from PIL import Image

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.files import save_json

SCRIPT = Path(__file__).with_name("data_pipelines.py")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    seconds: float = 6.0
    """Seconds for which each pipeline is timed, in all rounds together."""
    rounds: int = 2
    """How often the pipelines take turns."""
    images: int = 64
    """Number of JPEGs."""
    size: int = 64
    """Side of the crops in pixels."""
    batch: int = 64
    """Images per batch."""
    area_min: float = 80.0
    """Smallest area of a crop in percent of the image."""
    workers: int = 2
    """Threads or processes of each pipeline."""
    memory_seconds: float = 20.0
    """Seconds for which the memory is watched; 0 omits it."""
    tf_python: str | None = None
    """Python interpreter of an environment with TensorFlow. None: this one, if it is installed here."""
    torch_python: str | None = None
    """Python interpreter of an environment with PyTorch and Pillow. None: this one, if PyTorch is installed here."""
    json: Path | None = None
    """JSON file for the results."""

    def validate(self) -> None:
        """Raises `BadInput` for invalid options."""
        for name in ("seconds", "rounds", "images", "size", "batch", "workers"):
            if getattr(self, name) <= 0:
                raise BadInput(name, f"{getattr(self, name)} is too small", "Use 1 or more")
        if self.memory_seconds < 0:
            raise BadInput("memory_seconds", f"{self.memory_seconds} is negative", "Use 0 or more")
        if not 0 < self.area_min < 100:
            raise BadInput("area_min", f"{self.area_min} is outside (0, 100)", "Use a percentage, such as 80")
        for name in ("tf_python", "torch_python"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise BadInput(name, f"there is no file {path}", "Give the path of a Python interpreter")
        if self.json is not None:
            require_writable("json", self.json)


class Pipeline(NamedTuple):
    """A pipeline to time: its title, the interpreter that runs it, and the words of `data_pipelines.py`."""

    title: str
    python: str
    words: tuple[str, ...]


def pipelines(options: Options) -> list[Pipeline]:
    """Returns the pipelines that can be timed here: first the one that the others are compared with."""
    tf = options.tf_python or (sys.executable if importlib.util.find_spec("tensorflow") else None)
    torch = options.torch_python or (sys.executable if importlib.util.find_spec("torch") else None)
    found = [] if tf is None else [Pipeline("tf.data", tf, ("tf.data",))]
    found.append(Pipeline("Pillow, one thread", sys.executable, ("pillow", "--workers", "1")))
    if torch is not None:
        found.append(Pipeline("PyTorch DataLoader", torch, ("torch",)))
    for decode in ("exact", "fast"):
        words = ("ours", "--decode", decode)
        found.append(Pipeline(f"{decode}, threads", sys.executable, words))
        found.append(Pipeline(f"{decode}, processes", sys.executable, (*words, "--processes")))
    return found


def write_images(folder: Path, number: int) -> int:
    """Writes JPEGs of 500 x 375 pixels into a class folder of `folder`. Returns their mean size in bytes.

    They are noise whose power falls with the square of the frequency, as that of photographs does; the channels of a
    pixel are alike.
    """
    (folder / "images").mkdir()
    rng, total = np.random.default_rng(0), 0
    for i in range(number):
        height, width = (375, 500) if i % 4 else (500, 375)
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
        frequency[0, 0] = np.inf
        grey, *colour = np.fft.ifft2(np.fft.fft2(rng.normal(size=(4, height, width))) / frequency).real
        waves = grey[..., None] / grey.std() + 0.25 * np.stack(colour, -1) / np.std(colour)
        path = folder / "images" / f"{i:04}.jpg"
        Image.fromarray(np.clip(128 + 50 * waves, 0, 255).astype(np.uint8)).save(path, quality=86)
        total += path.stat().st_size
    return round(total / number)


def run_one(pipeline: Pipeline, folder: Path, options: Options, seconds: float, batch: int) -> dict[str, Any]:
    """Runs a pipeline in a process of its own. Raises `BadInput` if that fails."""
    shared = {"--seconds": seconds, "--size": options.size, "--batch": batch, "--area-min": options.area_min}
    words = [str(word) for pair in ({"--workers": options.workers} | shared).items() for word in pair]
    name, *own = pipeline.words
    command = [pipeline.python, str(SCRIPT), name, str(folder), *words, *own]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600 + 10 * seconds)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        field = {"tf.data": "tf_python", "torch": "torch_python"}.get(name, "seconds")
        raise BadInput(field, f"the pipeline {pipeline.title} failed ({last[:300]})", "Check its environment")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(folder: Path, options: Options) -> list[dict[str, Any]]:
    """Times all pipelines, in turns. Returns a row for each."""
    found = pipelines(options)
    parts: dict[str, list[dict[str, Any]]] = {pipeline.title: [] for pipeline in found}
    for turn in range(options.rounds):
        for pipeline in found:
            print(
                f"\r\x1b[Kround {turn + 1} of {options.rounds}: {pipeline.title}", end="", file=sys.stderr, flush=True
            )
            seconds = options.seconds / options.rounds
            parts[pipeline.title].append(run_one(pipeline, folder, options, seconds, options.batch))
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    rows = []
    for title, some in parts.items():
        total = {name: sum(part[name] for part in some) for name in ("images", "seconds", "cpu_seconds")}
        speeds = {name: total["images"] / total[of] for name, of in _SPEEDS}
        rows.append({"pipeline": title, **speeds, **total})
    for row in rows:
        row["ratio"] = row["images_per_s"] / rows[0]["images_per_s"]
        row["wall_ratio"] = row["wall_images_per_s"] / rows[0]["wall_images_per_s"]
    return rows


_SPEEDS = (("images_per_s", "cpu_seconds"), ("wall_images_per_s", "seconds"))


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table."""
    lines = ["| pipeline | images/s per core | ratio | images/s by the clock | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['pipeline']} | {row['images_per_s']:,.0f} | {row['ratio']:.2f} | "
            f"{row['wall_images_per_s']:,.0f} | {row['wall_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Runs the benchmark, prints the table and writes the JSON file. Raises `BadInput` for invalid options."""
    options = tyro.cli(Options, args=words, description=__doc__)
    options.validate()
    if options.tf_python is None and importlib.util.find_spec("tensorflow") is None:
        print("TensorFlow is not installed; ratios are to Pillow (`--tf-python PATH`)", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_images(folder, options.images)
        rows = measure(folder, options)
        print(
            f"{options.images} JPEGs of {size / 1e3:.0f} KB, {options.workers} workers, against {rows[0]['pipeline']}"
        )
        print(f"\n{table(rows)}\n")
        if options.memory_seconds:
            ours = Pipeline("exact, threads", sys.executable, ("ours",))
            watched = run_one(ours, folder, options, options.memory_seconds, batch=min(8, options.batch))
            slope, batches = watched["kb_per_1000_batches"], watched["batches"]
            mb = watched["kb"] / 1024
            size = min(8, options.batch)
            print(f"memory: {slope:+.1f} KB per 1,000 batches, over {batches // 2:,} batches of {size}; {mb:,.0f} MB")
            rows.append({"pipeline": "memory", "kb_per_1000_batches": slope, "batches": batches, "kb": watched["kb"]})
    if options.json is not None:
        save_json(options.json, rows)
    return 0


if __name__ == "__main__":
    exit_with(main)
