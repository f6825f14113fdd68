"""Folders of image files that cannot be used are refused in one line."""

import shutil
from pathlib import Path

import pytest
from tiny_sets import CLASSES, picture, put

from umd_eqx.core.errors import BadInput
from umd_eqx.data import image_folder
from umd_eqx.data.source_configs import AbstractSource, ImageFolder


def into_a_split(root: Path) -> None:
    for name in CLASSES:
        shutil.move(root / name, root / "train" / name)
    put(root / "train" / "ant" / "more" / "x.png", picture(0, 4, 4, 3))


REFUSED = {
    "missing": (lambda root: shutil.rmtree(root), "there is no folder"),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("")), "is not a folder"),
    "empty": (lambda root: (shutil.rmtree(root), root.mkdir()), "contains no class folders"),
    "only images": (
        lambda root: (shutil.rmtree(root), put(root / "a.png", picture(0, 4, 4, 3))),
        "has images outside class folders (a.png)",
    ),
    "an image at the top": (
        lambda root: put(root / "a.png", picture(0, 4, 4, 3)),
        "has images outside class folders (a.png)",
    ),
    "a class without images": (lambda root: (root / "dog").mkdir(), "dog has no images (.jpg, "),
    "a folder in a class": (
        lambda root: put(root / "ant" / "more" / "x.png", picture(0, 4, 4, 3)),
        "ant has images outside class folders (0.png)",
    ),
    "a folder in a class of a split": (into_a_split, "ant contains a folder (more)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_of_another_layout_is_refused_in_one_line(flat, case):
    make, said = REFUSED[case]
    make(flat)
    with pytest.raises(BadInput) as error:
        ImageFolder(str(flat)).describe("train", "train")
    assert error.value.field == "data.source.dir"
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_may_not_be_read_is_refused_in_one_line(flat, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(image_folder.os, "scandir", refuse)
    with pytest.raises(BadInput, match=r"data\.source\.dir: .*pets cannot be read \(Permission denied\)"):
        ImageFolder(str(flat)).splits()


def test_no_folder_and_other_channels_are_refused(flat):
    with pytest.raises(BadInput, match=r"data\.source\.dir: no folder of images is given"):
        ImageFolder().describe("train", "train")
    with pytest.raises(BadInput, match=r"data\.source\.channels: 4 is neither 1 nor 3"):
        ImageFolder(str(flat), channels=4).describe("train", "train")


@pytest.mark.parametrize("part", ["test", "train[", "train[40:50]", "train[:10%", "", "ant", "all[:5]"])
def test_an_unknown_split_is_refused(flat, part):
    config: AbstractSource = ImageFolder(str(flat))
    for call, field in (
        (lambda: config.describe(part, "train"), "data.train_split"),
        (lambda: config.describe("train", part), "data.test_split"),
        (lambda: config.open(part, field="data.split"), "data.split"),
    ):
        with pytest.raises(BadInput, match=r"Splits of .*pets: train; parts of them") as error:
            call()
        assert error.value.field == field


def test_a_part_without_images_is_refused(flat):
    with pytest.raises(BadInput, match=r"data\.test_split: 'train\[5:5\]' has no images"):
        ImageFolder(str(flat)).describe("train", "train[5:5]")
