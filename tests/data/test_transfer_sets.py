"""The data sets of the transfer benchmark, found in a folder as TFDS or their authors left them."""

import numpy as np
import pytest
from data.own_images import as_folder, as_npz, drawn
from data.transfer_folder import TEN, write_set, write_sets

from umd_eqx.core.errors import BadInput
from umd_eqx.data.transfer_sets import TRANSFER_SETS, MissingSet, TransferSet, open_set

PUBLISHED = {
    "imagenet2012": ("imagenet2012", "train", "validation"),
    "cifar100": ("cifar100", "train", "test"),
    "stl10": ("stl10", "train", "test"),
    "dtd": ("dtd", "train", "test"),
    "oxford_iiit_pet": ("oxford_iiit_pet", "train", "test"),
    "oxford_flowers102": ("oxford_flowers102", "train", "test"),
    "food101": ("food101", "train", "validation"),
    "stanford_dogs": ("stanford_dogs", "train", "test"),
    "imagenet_v2": ("imagenet2012", "train", "test"),
    "uc_merced": ("uc_merced", "train[:1000]", "train[1000:]"),
}
"""Where shots come from, and both splits: the published configuration, whose pool of 100,000 is the probe's."""


def test_the_splits_are_those_of_the_published_configuration():
    found = {each.name: (each.shots_from or each.name, each.train, each.test) for each in TRANSFER_SETS.values()}
    assert found == PUBLISHED
    assert list(TEN) == list(found)


@pytest.mark.parametrize("name", TEN)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_set_is_read_as_tfds_writes_it(tmp_path_factory, name, channels):
    root = tmp_path_factory.getbasetemp() / "ten sets"
    for needed in {name, TRANSFER_SETS[name].shots_from or name}:
        if not (root / needed).exists():
            write_set(root, needed)
    opened = open_set(TRANSFER_SETS[name], str(root), channels)
    origin, train, test = PUBLISHED[name]
    expected = (train, test) if name != "uc_merced" else ("train[:48%]", "train[48%:]")
    assert (opened.origin, opened.splits) == (origin, expected)
    counts = {split: 3 * each for split, each in TEN[name].splits.items()}
    if name == "uc_merced":
        assert (len(opened.train), len(opened.test)) == (14, 16)
        assert any("instead of train[:1000] and train[1000:]" in note for note in opened.notes)
    else:
        assert len(opened.train) == 3 * TEN[origin].splits[train]
        assert len(opened.test) == counts[test]
    for source in (opened.train, opened.test):
        assert (source.spec.channels, source.spec.num_classes) == (channels, 3)
        example = source[1]
        assert example["image"].shape[2] == channels
        assert example["label"] == source.labels(np.array([1]))[0]
        assert set(source.labels(np.arange(len(source)))) == {0, 1, 2}
    assert f"3 classes, published {TRANSFER_SETS[name].classes:,}" in opened.notes


def test_a_published_part_of_a_split_is_used_where_there_are_enough_images(tmp_path):
    as_npz(tmp_path / "uc_merced", drawn(1200), name="train.npz")
    opened = open_set(TRANSFER_SETS["uc_merced"], str(tmp_path), 1)
    assert opened.splits == ("train[:1000]", "train[1000:]")
    assert (len(opened.train), len(opened.test)) == (1000, 80)  # a tenth of a single split is held out
    as_npz(tmp_path / "few" / "uc_merced", drawn(40))
    assert open_set(TRANSFER_SETS["uc_merced"], str(tmp_path / "few"), 1).splits == ("train", "test")


def test_missing_sets_name_the_command_that_gets_them(tmp_path):
    root = str(tmp_path / "two words")
    for name, said in (
        ("cifar100", "tfds build cifar100 --file_format=array_record --data_dir"),
        ("imagenet_v2", "tfds build imagenet_v2/matched-frequency --file_format"),
        ("imagenet2012", "python experiments/prepare.py --src TARS --out"),
    ):
        with pytest.raises(MissingSet, match=f"there is no {name} in") as found:
            open_set(TRANSFER_SETS[name], root, 3)
        assert said in found.value.hint
        assert f"'{root}'" in found.value.hint
    with pytest.raises(MissingSet, match="Put a folder mine of images"):
        open_set(TransferSet("mine"), root, 3)


def test_a_set_without_training_images_needs_those_of_another(tmp_path):
    root = write_sets(tmp_path, ["imagenet_v2"])
    with pytest.raises(MissingSet, match="shots of imagenet_v2 are training images of imagenet2012, and there is no"):
        open_set(TRANSFER_SETS["imagenet_v2"], str(root), 3)
    write_set(root, "imagenet2012", classes=4)
    with pytest.raises(BadInput, match="the 3 classes of imagenet_v2 are not the 4 of imagenet2012"):
        open_set(TRANSFER_SETS["imagenet_v2"], str(root), 3)


def test_numbered_class_folders_are_classes_by_their_number(tmp_path):
    """`10` is sorted before `2`; ImageNet's classes are in the order of their identifiers."""
    shots, asked = drawn(36, 3, classes=12), drawn(24, 3, classes=12, seed=1)
    as_folder(tmp_path / "imagenet2012" / "train", [(image, label + 100) for image, label in shots])
    as_folder(tmp_path / "imagenet2012" / "val", [(image, label + 100) for image, label in shots[:12]])
    for i, (image, label) in enumerate(asked):
        as_folder(tmp_path / "written", [(image, label)])
        target = tmp_path / "imagenet_v2" / str(label)
        target.mkdir(parents=True, exist_ok=True)
        (tmp_path / "written" / f"class {label}" / "0.png").rename(target / f"{i}.png")
    opened = open_set(TRANSFER_SETS["imagenet_v2"], str(tmp_path), 3)
    assert (len(opened.train), len(opened.test), opened.renumbered) == (36, 24, True)  # nothing is held out
    known = {image.tobytes(): label for image, label in (*shots, *asked)}
    for source in (opened.train, opened.test):
        for i in range(len(source)):
            assert source[i]["label"] == known[source[i]["image"].tobytes()] == source.labels(np.array([i]))[0]


def test_own_images_are_a_set_under_the_name_of_their_folder_or_file(tmp_path):
    as_folder(tmp_path / "mine", drawn(40))
    opened = open_set(TransferSet("mine"), str(tmp_path), 3)
    assert (len(opened.train), len(opened.test), opened.train.spec.name) == (36, 4, "mine")
    as_npz(tmp_path, drawn(40), name="packed.npz")
    assert open_set(TransferSet("packed"), str(tmp_path), 3).digests == opened.digests
    as_npz(tmp_path / "bare", [(image, None) for image, _ in drawn(20)])
    with pytest.raises(BadInput, match=r"bare in .* has no labels"):
        open_set(TransferSet("bare"), str(tmp_path), 3)
