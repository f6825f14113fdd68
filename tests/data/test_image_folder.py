"""Folders of image files: layouts, labels and parts."""

import io
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_sets import CLASSES, encode, image_features, picture, put, write

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data import image_folder
from umd_eqx.data.loader import batch_at
from umd_eqx.data.source import BrokenImage, DataSource
from umd_eqx.data.source_configs import TFDS, ImageFolder
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.recipes.config import DataConfig


@pytest.fixture
def split(flat, tmp_path) -> Path:
    """The same images as the split train, and the first three of bee and cat as the split val."""
    root = tmp_path / "split"
    shutil.copytree(flat, root / "train")
    for name in CLASSES[1:]:
        for i in range(3):
            (root / "val" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(flat / name / f"{i}.png", root / "val" / name)
    return root


def contents(source: DataSource) -> set[tuple[int, int]]:
    """(label, pixel value) of every image."""
    examples = [source[i] for i in range(len(source))]
    return {(example["label"], int(example["image"][0, 0, 0])) for example in examples}


def every(*labels: int, images: int = 10) -> set[tuple[int, int]]:
    return {(label, 50 * label + i) for label in labels for i in range(images)}


def test_one_level_of_folders_is_the_split_train(flat):
    config = ImageFolder(str(flat))
    assert config.splits() == ("train",)
    assert config.describe("train[:80%]", "train[80%:]") == DataSpec("pets", 24, 6, None, None, 3, 3)
    source = config.open("train")
    assert isinstance(source, DataSource)
    assert source.spec == DataSpec("pets", 30, 0, None, None, 3, 3)
    assert len(source) == 30
    assert contents(source) == every(0, 1, 2)


def test_two_levels_of_folders_are_splits_with_common_labels(split):
    config = ImageFolder(str(split))
    assert config.splits() == ("train", "val")
    assert config.describe("train", "val") == DataSpec("split", 30, 6, None, None, 3, 3)
    assert contents(config.open("train")) == every(0, 1, 2)
    assert contents(config.open("val")) == every(1, 2, images=3)
    assert len(config.open("train[:3]+val[50%:]")) == 6


def test_labels_are_told_without_opening_a_file(flat):
    source = ImageFolder(str(flat)).open("train")
    expected = [source[i]["label"] for i in range(30)]
    shutil.rmtree(flat)
    np.testing.assert_array_equal(source.labels(np.arange(30)), expected)
    np.testing.assert_array_equal(source.labels(np.array([7, 3])), [expected[7], expected[3]])
    with pytest.raises(BrokenImage, match=r"image 3 is broken: .*\.png: .*No such file"):
        source[3]


def test_parts_of_a_split_are_disjoint_and_hold_images_of_every_class(flat):
    config = ImageFolder(str(flat))
    parts = [config.open(part) for part in ("train[:60%]", "train[60%:]")]
    assert [len(part) for part in parts] == [18, 12]
    assert contents(parts[0]).isdisjoint(contents(parts[1]))
    assert contents(parts[0]) | contents(parts[1]) == every(0, 1, 2)
    for part in parts:
        assert set(part.labels(np.arange(len(part))).tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(config.open("train[-4:]").labels(np.arange(4)), parts[1].labels(np.arange(8, 12)))


def test_parts_have_as_many_images_as_tfds_counts(tmp_path):
    for i in range(37):
        put(tmp_path / "folder" / "one" / f"{i}.png", picture(i, 4, 4, 1))
    records = [{"image": encode(picture(i, 4, 4, 1)), "label": 0} for i in range(37)]
    write(tmp_path / "tfds", {"train": records}, image_features((4, 4, 1)))
    folder, tfds = ImageFolder(str(tmp_path / "folder")), TFDS("tiny", str(tmp_path / "tfds"))
    for part in ("train", "train[:33%]", "train[33%:]", "train[5:-2]", "train[-10%:]"):
        assert len(folder.open(part)) == len(tfds.open(part)), part


def test_the_order_does_not_depend_on_the_order_of_the_file_system(flat, monkeypatch):
    def first_labels() -> list[int]:
        return [ImageFolder(str(flat)).open("train")[i]["image"][0, 0, 0].item() for i in range(30)]

    usual, scandir = first_labels(), os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(image_folder.os, "scandir", lambda path: Reversed(list(scandir(path))[::-1]))
    assert first_labels() == usual
    assert usual != sorted(usual)


@pytest.mark.parametrize(("layout", "folders"), [("flat", 4), ("split", 8)])
def test_each_folder_is_listed_once(request, layout, folders, monkeypatch):
    root, scandir, listed = request.getfixturevalue(layout), os.scandir, []

    def counted(path):
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(image_folder.os, "scandir", counted)
    train, test = ("train", "val") if layout == "split" else ("train[:50%]", "train[50%:]")
    data = DataConfig(source=ImageFolder(str(root)), train_split=train, test_split=test)
    data.describe()
    data.open()
    data.open()
    assert len(listed) == len(set(listed)) == folders


def test_hidden_and_foreign_files_are_ignored_and_links_are_followed(flat, tmp_path):
    (flat / "README.txt").write_text("pets")
    (flat / ".git").mkdir()
    (flat / "ant" / "Thumbs.db").write_bytes(b"")
    (flat / "ant" / "._0.png").write_bytes(b"")
    put(flat / "ant" / "UPPER.JPG", np.full((8, 8, 3), 10, np.uint8), format="PNG")
    shutil.move(flat / "bee", tmp_path / "elsewhere")
    (flat / "bee").symlink_to(tmp_path / "elsewhere")
    source = ImageFolder(str(flat)).open("train")
    assert source.spec.num_classes == 3
    assert contents(source) == every(0, 1, 2) | {(0, 10)}


def test_images_are_converted_to_the_channels_asked_for(tmp_path):
    colour = picture(0, 5, 4, 3)
    put(tmp_path / "root/a/grey.png", colour[..., :1])
    source = ImageFolder(str(tmp_path / "root")).open("train")
    np.testing.assert_array_equal(source[0]["image"], np.repeat(colour[..., :1], 3, axis=-1))
    grey = ImageFolder(str(tmp_path / "root"), channels=1).open("train")
    np.testing.assert_array_equal(grey[0]["image"], colour[..., :1])
    assert (source.spec.channels, grey.spec.channels) == (3, 1)


def test_exif_orientation_is_ignored_and_transparency_dropped_as_torchvision_does(tmp_path):
    colour = picture(0, 6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    put(tmp_path / "root/a/turned.png", colour, exif=exif)
    assert ImageFolder(str(tmp_path / "root")).open("train")[0]["image"].shape == (6, 4, 3)
    put(tmp_path / "clear/a/clear.png", np.concatenate([colour, np.zeros_like(colour[..., :1])], axis=-1))
    np.testing.assert_array_equal(ImageFolder(str(tmp_path / "clear")).open("train")[0]["image"], colour)
    indexed = Image.fromarray(colour).quantize(4)
    (tmp_path / "palette/a").mkdir(parents=True)
    indexed.save(tmp_path / "palette/a/x.png", transparency=b"\x00\x80\xff\x10")
    found = ImageFolder(str(tmp_path / "palette")).open("train")[0]["image"]
    np.testing.assert_array_equal(found, np.asarray(indexed.convert("RGB")))


def test_broken_files_are_skipped_and_counted(flat):
    whole = io.BytesIO()
    Image.fromarray(picture(0, 32, 32, 3)).save(whole, "JPEG")
    (flat / "ant" / "0.png").write_bytes(whole.getvalue()[:400])
    (flat / "bee" / "1.png").write_bytes(b"")
    (flat / "cat" / "2.png").write_bytes(b"not an image")
    data = DataConfig(source=ImageFolder(str(flat)), test_split="train", max_broken=3)
    train, test = data.open()
    assert contents(train) == every(0, 1, 2) - {(0, 0), (1, 51), (2, 102)}
    assert len(train.broken) == 3
    for index in range(30):
        if index in train.broken:
            with pytest.raises(BrokenImage):
                test[index]
    assert test.broken == train.broken
    train, _ = DataConfig(source=ImageFolder(str(flat)), test_split="train", max_broken=2).open()
    with pytest.raises(BadInput, match=r"data\.max_broken: 3 broken images, more than 2"):
        contents(train)


def test_it_is_read_from_threads_and_pickled(flat):
    source = ImageFolder(str(flat)).open("train[:20]")
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(copy.__getitem__, range(20)))
    for i, example in enumerate(again):
        np.testing.assert_array_equal(example["image"], source[i]["image"])
        assert example["label"] == source[i]["label"]
    for index in (-1, 20):
        with pytest.raises(IndexError):
            source[index]


def test_batches_are_those_of_the_same_images_in_tfds(tmp_path):
    folder = ImageFolder(str(tmp_path / "folder"))
    for i in range(20):
        put(tmp_path / "folder" / f"class{i % 4}" / f"{i:02}.png", picture(i, 8, 8, 3))
    source = folder.open("train")
    records = [{"image": encode(source[i]["image"]), "label": source[i]["label"]} for i in range(20)]
    write(tmp_path / "tfds", {"train": records}, image_features((8, 8, 3)))
    there = TFDS("tiny", str(tmp_path / "tfds")).open("train")
    for step in (0, 3):
        ours, theirs = (batch_at(s, TrainTransform(8), batch_size=8, seed=3, step=step) for s in (source, there))
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.label, theirs.label)
