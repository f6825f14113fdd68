import gzip
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data import build_fashion_mnist
from umd_eqx.data.build_fashion_mnist import CLASSES, encode_png, read_idx
from umd_eqx.data.decoding import decode_image
from umd_eqx.data.folders import find_dataset
from umd_eqx.data.source import TfdsSource, describe


@pytest.fixture
def folder(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return find_dataset("fashion_mnist", None)


def write_idx(path, array, magic=None):
    head = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    path.write_bytes(gzip.compress(head + np.array(array.shape, ">u4").tobytes() + array.tobytes()))


def test_the_embedded_set_is_described(folder):
    expected = DataSpec("fashion_mnist", 60_000, 10_000, 28, 28, 1, 10)
    assert describe("fashion_mnist", str(folder), "train", "test") == expected


@pytest.mark.parametrize(("split", "each"), [("train", 6000), ("test", 1000)])
def test_the_classes_are_balanced(folder, split, each):
    # Labels only, read in bulk: decoding all of the pictures would take a minute.
    builder = tfds.builder_from_directory(folder)
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    labels = [record["label"] for record in records.__getitems__(list(range(len(records))))]
    np.testing.assert_array_equal(np.bincount(labels), [each] * 10)


def test_the_first_images_are_what_the_authors_show(folder):
    # Labels of the first ten images of the original files; the mean and spread of the pixels are well known too.
    source = TfdsSource(folder, "train")
    assert [source[i]["label"] for i in range(10)] == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    pixels = np.stack([source[i]["image"] for i in range(1024)]) / 255
    assert pixels.mean() == pytest.approx(0.2860, abs=0.01)
    assert pixels.std() == pytest.approx(0.3530, abs=0.01)
    assert TfdsSource(folder, "test")[0]["label"] == 9


def test_the_folder_names_its_classes_its_licence_and_nobodys_paths(folder):
    assert (folder / "label.labels.txt").read_text().splitlines() == list(CLASSES)
    assert "Zalando SE" in (folder.parent / "LICENSE").read_text()
    for name in ("dataset_info.json", "features.json"):
        text = (folder / name).read_text()
        assert not re.search(r"/(tmp|home|root|work|Users)\b", text)
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "array_record"
    assert sum(path.stat().length for path in folder.iterdir()) < 45e6


def test_encode_png_is_lossless():
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    np.testing.assert_array_equal(decode_image(encode_png(image), 1)[..., 0], image)


def test_read_idx(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    write_idx(tmp_path / "images.gz", images)
    np.testing.assert_array_equal(read_idx(tmp_path / "images.gz", (3, 4, 5)), images)


def test_wrong_idx_files_are_refused(tmp_path):
    path = tmp_path / "images.gz"

    def refused(shape, problem):
        with pytest.raises(BadInput, match=problem):
            read_idx(path, shape)

    refused((3,), "does not contain images.gz")
    path.write_bytes(b"not gzip")
    refused((3,), "is not a complete gzip file")
    images = np.zeros((3, 4, 5), np.uint8)
    write_idx(path, images)
    path.write_bytes(path.read_bytes()[:-9])
    refused((3, 4, 5), "is not a complete gzip file")
    write_idx(path, images)
    refused((3,), "starts with 00 00 08 03 instead of 00 00 08 01")
    refused((3, 5, 4), "has the shape")
    write_idx(path, images, magic=bytes([0, 0, 13, 3]))  # floats
    refused((3, 4, 5), "starts with 00 00 0d 03")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"\r", b"\x08", 1)[:-1]))
    refused((3, 4, 5), "contains 59 values instead of 60")


def test_a_small_set_is_built_as_the_large_one(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    numbers = {"train": 12, "test": 5}
    files = {split: (f"{split}-i.gz", f"{split}-l.gz", number) for split, number in numbers.items()}
    monkeypatch.setattr(build_fashion_mnist, "FILES", files)
    images = {split: rng.integers(0, 256, (number, 28, 28), np.uint8) for split, number in numbers.items()}
    for split, number in numbers.items():
        write_idx(tmp_path / f"{split}-i.gz", images[split])
        write_idx(tmp_path / f"{split}-l.gz", np.arange(number, dtype=np.uint8) % 10)
    built = build_fashion_mnist.build(tmp_path, tmp_path / "out")
    assert built == tmp_path / "out/fashion_mnist/1.0.0"
    for split, number in numbers.items():
        source = TfdsSource(built, split)
        assert len(source) == number
        for i in range(number):
            np.testing.assert_array_equal(source[i]["image"][..., 0], images[split][i])
            assert source[i]["label"] == i % 10
    features = (built / "features.json").read_text()
    assert features == (find_dataset("fashion_mnist", None) / "features.json").read_text()


def test_the_command_ends_with_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "umd_eqx.data.build_fashion_mnist", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"IDX_DIR: {tmp_path} does not contain train-images-idx3-ubyte.gz.")
    assert done.stderr.count("\n") == 1
