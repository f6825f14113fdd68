"""The names of images: relative to their folder where their paths are known."""

import numpy as np
import pytest
from own_images import as_folder, as_npz, as_tars, drawn
from tiny_sets import CLASSES, picture, put

from umd_eqx.data.places import PlacedSource, names_of
from umd_eqx.data.source_configs import TFDS, ImageFolder, Images

ALL = np.arange(12)


def test_names_of_files_lead_to_them_and_do_not_depend_on_the_place(tmp_path):
    for folder in ("one", "other/place"):
        as_folder(tmp_path / folder, drawn(12, classes=3))
    first, second = (Images(str(tmp_path / folder)) for folder in ("one", "other/place"))
    names = names_of(first.open("train+test"), ALL, first.dir, "train+test")
    assert names == names_of(second.open("train+test"), ALL, f"{second.dir}/", "train+test")
    assert sorted(names) == sorted(f"class {i % 3}/{i}.png" for i in range(12))
    assert names_of(first.open("train+test"), ALL[4:6], first.dir, "train+test") == names[4:6]
    assert names_of(first.open("train+test"), ALL[:1], None, "") == [f"{tmp_path}/one/{names[0]}"]


def test_a_single_file_is_named_from_its_folder(tmp_path, monkeypatch):
    as_npz(tmp_path, drawn(12), "some.npz")
    monkeypatch.chdir(tmp_path)
    for root in ("some.npz", str(tmp_path / "some.npz")):
        names = names_of(Images(root).open("train+test"), ALL, root, "")
        assert sorted(names) == sorted(f"some.npz/{i}" for i in range(12))


def test_images_in_two_splits_and_in_several_files_have_different_names(tmp_path):
    for split in ("train", "val"):
        as_tars(tmp_path / split, drawn(12), each=5)
    names = names_of(Images(str(tmp_path)).open("train+val"), np.arange(24), str(tmp_path), "")
    assert len({*names}) == 24
    assert "val/shard-001.tar/a/00007" in names


def test_class_folders_read_as_one_split_have_names_too(tmp_path):
    for name in CLASSES:
        put(tmp_path / name / "0.png", picture(0, 8, 8, 3))
    names = names_of(ImageFolder(str(tmp_path)).open("train"), np.arange(3), str(tmp_path), "train")
    assert sorted(names) == [f"{name}/0.png" for name in CLASSES]


@pytest.mark.parametrize("split", ["test", "train[5:]"])
def test_other_images_are_numbered_within_their_split(split):
    source = TFDS().open(split)
    assert not isinstance(source, PlacedSource)
    assert names_of(source, np.array([0, 7]), None, split) == [f"{split}[0]", f"{split}[7]"]
