"""Converts the four original files of Fashion-MNIST to the TFDS data set that is included in this package.

    python -m umd_eqx.data.build_fashion_mnist IDX_DIR [--out DIR]

`IDX_DIR` contains `train-images-idx3-ubyte.gz` and the three other files (https://github.com/zalandoresearch/fashion-mnist,
or Debian's package `dataset-fashion-mnist`). The result is `DIR/fashion_mnist/1.0.0`.
"""

import argparse
import gzip
import io
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from umd_eqx.core.errors import BadInput

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the ten classes, in the order of their labels."""

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
}
"""The original names of the image and label files, and the number of examples, of each split."""

CITATION = """@article{xiao2017fashion,
  title={Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author={Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal={arXiv preprint arXiv:1708.07747},
  year={2017}
}"""


def read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """Reads a gzipped idx file of unsigned bytes.

    **Arguments:**

    - `path`: the file.
    - `shape`: the expected shape: (examples, rows, columns) for images, (examples,) for labels.

    **Returns:** the values, 0 .. 255, in that shape.

    **Raises:** `BadInput` if the file is missing, is not an idx file of bytes, or has another shape.
    """
    hint = "Give the folder with the four original files of Fashion-MNIST"
    if not path.is_file():
        raise BadInput("IDX_DIR", f"{path.parent} does not contain {path.name}", hint)
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(str(path), f"the file is not a complete gzip file ({error})", hint) from error
    # An idx file starts with two zero bytes, the type (8: unsigned byte) and the rank; then each size, big-endian.
    magic = bytes([0, 0, 8, len(shape)])
    if content[:4] != magic:
        raise BadInput(str(path), f"the file starts with {content[:4].hex(' ')} instead of {magic.hex(' ')}", hint)
    start = 4 + 4 * len(shape)
    found = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if found != shape:
        raise BadInput(str(path), f"the array has the shape {found} instead of {shape}", hint)
    if len(content) - start != np.prod(shape):
        raise BadInput(str(path), f"the file contains {len(content) - start} values instead of {np.prod(shape)}", hint)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def encode_png(image: UInt8[np.ndarray, "h w"]) -> bytes:
    """Encodes a greyscale image as a size-optimised PNG. Lossless and deterministic."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder of Fashion-MNIST; example i of a split is example i of the original file.

    It is not registered, because TFDS has its own builder of this name, which downloads the files.
    """

    name = "fashion_mnist"
    __module__ = "umd_eqx.data.build_fashion_mnist"  # recorded by TFDS; would be "__main__" when run as a command
    # TFDS would look for checksums beside the code, with a package that it does not require on this Python version.
    code_path = None
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, idx_dir: Path, **kwargs: Any):
        self._idx_dir = idx_dir
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Greyscale 28 x 28 images of clothing in ten classes, by Zalando Research.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), dtype=np.uint8, encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation=CITATION,
            license="MIT, Copyright 2017 Zalando SE",
            disable_shuffling=True,  # the original files are already shuffled
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in FILES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images_file, labels_file, number = FILES[split]
        images = read_idx(self._idx_dir / images_file, (number, 28, 28))
        labels = read_idx(self._idx_dir / labels_file, (number,))
        if labels.max() >= len(CLASSES):
            raise BadInput(
                str(self._idx_dir / labels_file),
                f"the largest label is {labels.max()}",
                "Use a file with labels 0 .. 9",
            )
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            # Bytes instead of an array, which TFDS would encode with TensorFlow.
            yield i, {"image": encode_png(image), "label": int(label)}


def build(idx_dir: Path, out: Path) -> Path:
    """Writes the data set.

    **Arguments:**

    - `idx_dir`: the folder with the four idx.gz files.
    - `out`: the TFDS root in which `fashion_mnist/1.0.0` is created; an existing data set is left unchanged.

    **Returns:** the folder of the data set.

    **Raises:** `BadInput` for an invalid file, before anything is written.
    """
    for images_file, labels_file, number in FILES.values():
        read_idx(idx_dir / images_file, (number, 28, 28))
        read_idx(idx_dir / labels_file, (number,))
    builder = FashionMnist(idx_dir=idx_dir, data_dir=out, file_format="array_record")
    with tempfile.TemporaryDirectory() as downloads:  # TFDS creates this folder even if nothing is downloaded
        config = tfds.download.DownloadConfig(manual_dir=idx_dir, extract_dir=downloads)
        builder.download_and_prepare(download_dir=downloads, download_config=config)
    return Path(builder.data_dir)


def main() -> None:
    """Runs the command: builds the data set and prints its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idx_dir", type=Path, metavar="IDX_DIR", help="folder with the four idx.gz files")
    default = Path(__file__).parent / "embedded"
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help="TFDS root (default: the package's)")
    arguments = parser.parse_args()
    try:
        print(build(arguments.idx_dir, arguments.out))
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
