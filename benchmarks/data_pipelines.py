"""One input pipeline of `benchmarks/data.py`, timed in a process, and possibly a Python environment, of its own.

    python benchmarks/data_pipelines.py tf.data FOLDER --seconds 5

It reads the JPEGs FOLDER/*/*.jpg, crops them at random, resizes the crops to 64 px, mirrors half of them and makes
batches of float32 in [-1, 1], over and over. Its last line is a JSON object: images, seconds, CPU seconds of all
threads and processes of the pipeline. Only the pipelines `ours` need umd_eqx; tf.data needs TensorFlow, `torch` PyTorch
and Pillow, and `pillow` Pillow.
"""
# pyright: reportMissingImports=false, reportMissingModuleSource=false
# Types can only be checked where TensorFlow and PyTorch are installed.

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 4
"""Batches that each worker makes before the time is taken."""


def paths(folder: str) -> list[str]:
    """Returns the JPEGs in the class folders of a folder, in order."""
    return sorted(map(str, Path(folder).glob("*/*.jpg")))


def tf_data(options: argparse.Namespace) -> Iterator[Any]:
    """Batches of tf.data: `decode_and_crop_jpeg`, as the reference crops, and its resize."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    def prepare(path: Any) -> Any:
        encoded = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([0, 0, 4]),
            area_range=(options.area_min / 100, 1.0),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(encoded, box, channels=3), (options.size, options.size))
        image = tf.image.random_flip_left_right(tf.cast(image, tf.uint8))
        return tf.cast(image, tf.float32) / 127.5 - 1

    data = tf.data.Dataset.from_tensor_slices(paths(options.folder)).repeat().shuffle(256, seed=0)
    data = data.map(prepare, num_parallel_calls=options.workers, deterministic=True)
    data = data.batch(options.batch, drop_remainder=True).prefetch(2)
    settings = tf.data.Options()
    settings.threading.private_threadpool_size = options.workers
    settings.threading.max_intra_op_parallelism = 1
    return iter(data.with_options(settings))


def by_pillow(path: str, options: argparse.Namespace) -> np.ndarray:
    """Returns one image as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` make it of a Pillow image."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    width, height = picture.size
    for _ in range(10):
        area = random.uniform(options.area_min / 100, 1) * width * height
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = width, height
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    cut = picture.crop((left, top, left + w, top + h))
    small = cut.resize((options.size, options.size), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(small, np.float32) / 127.5 - 1


def pillow(options: argparse.Namespace) -> Iterator[Any]:
    """Batches of Pillow, in a plain loop."""
    files = paths(options.folder)
    while True:
        yield np.stack([by_pillow(random.choice(files), options) for _ in range(options.batch)])


class PillowImages:
    """A data set of PyTorch: images by index, each made by Pillow."""

    def __init__(self, options: argparse.Namespace):
        self.files, self.options = paths(options.folder), options

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.from_numpy(by_pillow(self.files[index % len(self.files)], self.options))


def torch_loader(options: argparse.Namespace) -> Iterator[Any]:
    """Batches of PyTorch's DataLoader with worker processes."""
    import torch

    torch.set_num_threads(1)
    data: Any = PillowImages(options)
    sampler = torch.utils.data.SequentialSampler(data)
    return iter(torch.utils.data.DataLoader(data, options.batch, sampler=sampler, num_workers=options.workers))


def ours(options: argparse.Namespace) -> Iterator[Any]:
    """Batches of this package, as a run reads them."""
    from umd_eqx.data.loader import training_batches
    from umd_eqx.data.source_configs import ImageFolder
    from umd_eqx.recipes.config import DataConfig

    data = DataConfig(ImageFolder(options.folder), size=options.size, area_min=options.area_min, decode=options.decode)
    images, processes = data.source.open("train"), options.workers if options.processes else 0
    settings = {"batch_size": options.batch, "threads": options.workers, "processes": processes}
    return training_batches(images, data.transform(), seed=0, **settings)


PIPELINES = {"tf.data": tf_data, "pillow": pillow, "torch": torch_loader, "ours": ours}


def cpu_seconds() -> float:
    """Returns the CPU time of this process and its children, also of those that still run (on Linux only)."""
    ticks, me = 0, str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended in the meantime
            continue
        if fields[1] == me:
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def resident_kb() -> float:
    """Returns the resident memory of this process in KB (on Linux only)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def timed(batches: Iterator[Any], options: argparse.Namespace) -> dict[str, float]:
    """Draws batches for `options.seconds` and returns how many images in what time.

    The slope of the memory is that of the second half.
    """
    for _ in range(WARM_UP * options.workers):
        next(batches)
    count, memory, began, cpu = 0, [], time.perf_counter(), cpu_seconds()
    while time.perf_counter() - began < options.seconds:
        next(batches)
        count += 1
        memory.append(resident_kb())
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    late = memory[count // 2 :]  # the first batches still grow caches
    slope = np.polyfit(np.arange(len(late)), late, 1)[0] if len(late) > 1 else 0.0
    row = {"images": count * options.batch, "batches": count, "seconds": seconds, "cpu_seconds": cpu}
    return row | {"kb_per_1000_batches": 1000 * float(slope), "kb": memory[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", choices=PIPELINES)
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--area-min", type=float, default=80.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decode", choices=("exact", "fast"), default="exact")
    parser.add_argument("--processes", action="store_true")
    options = parser.parse_args()
    random.seed(0)
    row = timed(PIPELINES[options.pipeline](options), options)
    print(json.dumps(row), flush=True)
    os._exit(0)  # the threads and processes of a pipeline that never ends need not be waited for


if __name__ == "__main__":
    main()
