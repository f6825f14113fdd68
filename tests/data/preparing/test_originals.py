"""Which images a folder of originals holds, with which labels, and in which order."""

import hashlib
import shutil
import tarfile

import numpy as np
import pytest
from imagenet_trees import (
    CLASSES,
    LABEL_FILE,
    picture,
    tar_of,
    training_images,
    validation_images,
    write_archives,
    write_folders,
)

from umd_eqx.core.errors import BadInput
from umd_eqx.data.preparing.originals import Originals, find_originals

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def content(found: Originals, split: str) -> list[tuple[str, int, bytes]]:
    some = found.splits[split]
    rows = [bytes(some.records.read(int(row))) for row in some.rows]
    return list(zip(some.names, some.labels.tolist(), rows, strict=True))


def in_tfds_order(split: str, names: list[str]) -> list[str]:
    """What TFDS does: the split is the salt of the MD5 of each name, and the digests are sorted."""
    return sorted(names, key=lambda name: hashlib.md5(f"{split}{name}".encode()).hexdigest())


def test_archives_have_the_labels_of_sorted_wordnet_ids_and_the_order_of_tfds(tmp_path):
    found = find_originals(str(write_archives(tmp_path / "in")))
    assert found.classes == CLASSES
    assert found.channels == 3
    train = content(found, "train")
    files = {name: (label, data) for label, c in enumerate(CLASSES) for name, data in training_images()[c].items()}
    assert {name: (label, data) for name, label, data in train} == files
    assert [name for name, _, _ in train] == in_tfds_order("train", list(files))
    images, labels = validation_images()
    wanted = {name: (CLASSES.index(label), images[name]) for name, label in zip(sorted(images), labels, strict=True)}
    validation = content(found, "validation")
    assert {name: (label, data) for name, label, data in validation} == wanted
    assert [name for name, _, _ in validation] == in_tfds_order("validation", list(images))


def unpacked(folder):
    return write_folders(folder)


def class_archives(folder):
    """train/ holds a tar of each class, val/ the unpacked images without labels."""
    (folder / "train").mkdir(parents=True)
    for name, files in training_images().items():
        (folder / "train" / f"{name}.tar").write_bytes(tar_of(files))
    images, labels = validation_images()
    (folder / "val").mkdir()
    for name, data in images.items():
        (folder / "val" / name).write_bytes(data)
    (folder / LABEL_FILE).write_text("\n".join(labels))
    return folder


def half_unpacked(folder):
    """The training archive, and val/ with class folders."""
    write_folders(folder)
    shutil.rmtree(folder / "train")
    inner = {f"{name}.tar": tar_of(files) for name, files in training_images().items()}
    (folder / TRAIN).write_bytes(tar_of(inner))
    return folder


@pytest.mark.parametrize("layout", [unpacked, class_archives, half_unpacked])
def test_it_makes_no_difference_whether_archives_have_been_unpacked(layout, tmp_path):
    archives, other = find_originals(str(write_archives(tmp_path / "a"))), find_originals(str(layout(tmp_path / "b")))
    assert other.classes == archives.classes
    assert list(other.splits) == list(archives.splits) == ["train", "validation"]
    for split in archives.splits:
        assert content(other, split) == content(archives, split)


def test_one_split_alone_is_enough_and_the_other_is_told_of(tmp_path):
    folder = write_archives(tmp_path / "in")
    (folder / VALIDATION).unlink()
    found = find_originals(str(folder))
    assert list(found.splits) == ["train"]
    assert found.notes == ("there are no images of the split validation",)
    assert content(find_originals(str(folder / TRAIN)), "train") == content(found, "train")
    (folder / TRAIN).unlink()
    write_archives(folder)
    (folder / TRAIN).unlink()
    assert list(find_originals(str(folder)).splits) == ["validation"]


def test_names_with_spaces_and_outside_ascii_are_kept(tmp_path):
    train = {"grün 1": {"ä b.JPEG": picture(1)}, "blau": {"ä b.JPEG": picture(2), "c.jpg": picture(3)}}
    inner = {f"{name}.tar": tar_of(files) for name, files in train.items()}
    (tmp_path / TRAIN).write_bytes(tar_of({**inner}))
    found = find_originals(str(tmp_path))
    assert found.classes == ("blau", "grün 1")
    # The same file name in two classes: the class belongs to the name then.
    named = {name: label for name, label, _ in content(found, "train")}
    assert named == {"grün 1/ä b.JPEG": 1, "blau/ä b.JPEG": 0, "blau/c.jpg": 0}


def test_other_images_keep_their_splits_and_labels(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 6, 5), np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    found = find_originals(str(tmp_path / "digits.npz"))
    assert (found.classes, found.channels) == (("0", "1", "2"), 1)
    assert {split: len(some.rows) for split, some in found.splits.items()} == {"train": 27, "test": 3}
    rows = np.concatenate([some.rows for some in found.splits.values()])
    assert sorted(rows) == list(range(30))
    for some in found.splits.values():
        np.testing.assert_array_equal(some.labels, labels[some.rows])


def put(folder, name: str, data: bytes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def without_end(data: bytes) -> bytes:
    return data[: len(data) // 2]


def test_what_is_wrong_is_told_with_the_file(tmp_path):
    class_tar = {f"{name}.tar": tar_of(files) for name, files in training_images().items()}
    whole = tar_of(class_tar)

    def said(src: str, labels: str | None = None) -> BadInput:
        with pytest.raises(BadInput) as error:
            find_originals(src, labels)
        assert "\n" not in str(error.value)
        return error.value

    assert "there is no folder or file" in said(str(tmp_path / "nowhere")).problem
    (tmp_path / "empty").mkdir()
    assert said(str(tmp_path / "empty")).field == "src"
    put(tmp_path / "cut", TRAIN, without_end(whole))
    error = said(str(tmp_path / "cut"))
    assert f"cut/{TRAIN} is not an uncompressed tar file, or is damaged or cut short, at byte" in error.problem
    put(tmp_path / "none", TRAIN, tar_of({**class_tar, "n99.tar": tar_of({})}))
    assert "the class n99 has no images" in said(str(tmp_path / "none")).problem
    put(tmp_path / "void", TRAIN, tar_of({"n98.tar": b"", **class_tar}))
    assert "the class n98 has no images" in said(str(tmp_path / "void")).problem
    # A class tar that was cut before it was put into the archive: the next header would be taken for one of its own.
    first = next(iter(class_tar))
    put(tmp_path / "inner", TRAIN, tar_of({**class_tar, first: class_tar[first][:1024]}))
    assert "is damaged or cut short, at byte 512" in said(str(tmp_path / "inner")).problem
    put(tmp_path / "flat", TRAIN, tar_of(training_images()[CLASSES[0]]))
    assert "should hold one tar file for each class" in said(str(tmp_path / "flat")).problem
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.add(tmp_path / "cut" / TRAIN)
    put(tmp_path / "zip", TRAIN, (tmp_path / "zipped.tar").read_bytes())
    assert "is not an uncompressed tar file" in said(str(tmp_path / "zip")).problem
    write_folders(tmp_path / "folders")
    assert "no validation images without labels" in said(str(tmp_path / "folders"), "x.txt").problem
    (tmp_path / "folders" / "train" / "n99").mkdir()
    assert "n99 has no images" in said(str(tmp_path / "folders")).problem
    put(tmp_path / "unlabelled", "a.png", picture(1))
    assert "have no labels" in said(str(tmp_path / "unlabelled")).problem
