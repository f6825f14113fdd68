"""Images whose kind is found by looking: the same images give the same batches whatever holds them."""

import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from own_images import KINDS, add, as_folder, as_npz, as_parquet, as_tars, drawn, shuffled, tar_with
from PIL import Image
from tiny_sets import encode, image_features, write

from umd_eqx.core.types import NO_CLASS, DataSpec
from umd_eqx.data import collection
from umd_eqx.data.loader import batch_at
from umd_eqx.data.source import BrokenImage, DataSource
from umd_eqx.data.source_configs import TFDS, Images
from umd_eqx.data.transforms import TrainTransform


def contents(source: DataSource) -> set[tuple[int, bytes]]:
    examples = [source[i] for i in range(len(source))]
    return {(example["label"], example["image"].tobytes()) for example in examples}


def broken(source: DataSource) -> list[str]:
    """What is wrong with each broken image."""
    problems = []
    for i in range(len(source)):
        try:
            source[i]
        except BrokenImage as error:
            problems.append(str(error).partition("broken: ")[2])
    return problems


def assert_same_batches(one: DataSource, other: DataSource) -> None:
    assert len(one) == len(other)
    for step in (0, 5):
        ours, theirs = (batch_at(s, TrainTransform(8), batch_size=8, seed=3, step=step) for s in (one, other))
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.label, theirs.label)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_images_give_the_same_batches_from_every_kind(tmp_path, kind, channels):
    images = drawn(60, channels)
    expected = Images(str(as_npz(tmp_path / "npz", images)))
    found = Images(str(KINDS[kind](tmp_path / "other", shuffled(images, 1))))
    assert found.splits() == ("train", "test")
    spec = found.describe("train", "test")
    assert spec == DataSpec("other", 54, 6, 8, 8, channels, 10)
    for split in ("train", "test", "train[:50%]"):
        assert_same_batches(found.open(split), expected.open(split))
    assert found.digest() == expected.digest()
    whole = contents(found.open("train")) | contents(found.open("test"))
    assert whole == {(label, image.tobytes()) for image, label in images}


def test_the_same_images_in_tfds_give_the_same_batches(tmp_path):
    source = Images(str(as_npz(tmp_path / "npz", drawn(40)))).open("train")
    records = [{"image": encode(source[i]["image"]), "label": source[i]["label"]} for i in range(len(source))]
    write(tmp_path / "tfds", {"train": records}, image_features((8, 8, 1), classes=10))
    assert_same_batches(TFDS("tiny", str(tmp_path / "tfds")).open("train"), source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tenth_is_held_out_and_parts_hold_every_class(tmp_path, kind):
    found = Images(str(KINDS[kind](tmp_path / "some", drawn(200, classes=2))))
    train, test = found.open("train"), found.open("test")
    assert (len(train), len(test)) == (180, 20)
    assert contents(train).isdisjoint(contents(test))
    assert set(test.labels(np.arange(20)).tolist()) == {0, 1}
    assert contents(found.open("validation")) == contents(test)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_set_is_neither_read_nor_ordered_by_its_pixels(tmp_path, kind, monkeypatch):
    small = Images(str(KINDS[kind](tmp_path / "some", drawn(80))))
    whole = contents(small.open("train")) | contents(small.open("test"))
    monkeypatch.setattr(collection, "SMALL_COUNT", 79)
    monkeypatch.setattr(collection, "SAMPLED", 3)
    large = Images(str(tmp_path / "some"))
    assert large.describe("train", "test")._replace(height=8, width=8) == small.describe("train", "test")
    train, test = large.open("train"), large.open("test")
    assert (len(train), len(test)) == (72, 8)
    assert contents(train) | contents(test) == whole
    assert contents(train).isdisjoint(contents(test))
    labels = train.labels(np.arange(72))
    assert len(set(labels[:36].tolist())) > 7
    assert large.digest() != small.digest()
    assert large.digest() == Images(str(tmp_path / "some")).digest()


LAYOUTS = {
    "folders": lambda root: (as_folder(root / "train", drawn(30)), as_folder(root / "val", drawn(20, seed=1))),
    "files": lambda root: (as_npz(root, drawn(30), "train.npz"), as_npz(root, drawn(20, seed=1), "my_val-1.npz")),
    "shards": lambda root: (
        as_tars(root, drawn(30), "set-train-{}.tar"),
        as_tars(root, drawn(20, seed=1), "set-val-{}.tar"),
    ),
    "shards in folders": lambda root: (as_tars(root / "train", drawn(30)), as_tars(root / "val", drawn(20, seed=1))),
    "hugging face": lambda root: (
        as_parquet(root / "data", drawn(30), "train-00000-of-00001.parquet"),
        as_parquet(root / "data", drawn(20, seed=1), "validation-00000-of-00001.parquet"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_named_by_folders_or_files(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "root")
    found = Images(str(tmp_path / "root"))
    assert found.splits() in {("train", "val"), ("val", "train"), ("train", "validation")}
    for held_out in ("test", "val", "validation"):
        assert found.describe("train", held_out) == DataSpec("root", 30, 20, 8, 8, 1, 10)
    assert contents(found.open("test[:50%]+val[50%:]")) == {(n, i.tobytes()) for i, n in drawn(20, seed=1)}


def test_a_single_file_is_a_data_set_of_its_name(tmp_path):
    as_npz(tmp_path, drawn(20), "täglich 1.npz")
    found = Images(str(tmp_path / "täglich 1.npz"))
    assert found.describe("train", "test") == DataSpec("täglich 1", 18, 2, 8, 8, 1, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_labels_have_no_classes(tmp_path, kind):
    found = Images(str(KINDS[kind](tmp_path / "some", [(image, None) for image, _ in drawn(20)])))
    train = found.open("train")
    assert train.spec.num_classes == 0
    assert {train[i]["label"] for i in range(18)} == {NO_CLASS}
    np.testing.assert_array_equal(train.labels(np.arange(3)), [NO_CLASS] * 3)


def test_folders_of_unlabelled_images_named_as_splits_are_splits(tmp_path):
    for split, count in (("train", 12), ("test", 4)):
        as_folder(tmp_path / split, [(image, None) for image, _ in drawn(count)])
    found = Images(str(tmp_path))
    assert found.splits() == ("test", "train")
    assert found.describe("train", "val")[1:] == (12, 4, 8, 8, 1, 0)


def test_one_colour_image_makes_a_set_of_grey_ones_coloured(tmp_path):
    as_folder(tmp_path, drawn(12, classes=2))
    assert Images(str(tmp_path)).describe("train", "test").channels == 1
    (tmp_path / "class 0" / "x.png").write_bytes(encode(drawn(1, channels=3)[0][0]))
    assert Images(str(tmp_path)).describe("train", "test").channels == 3
    assert Images(str(tmp_path), channels=1).open("train")[0]["image"].shape == (8, 8, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_from_threads_and_pickled(tmp_path, kind):
    source = Images(str(KINDS[kind](tmp_path / "some", drawn(60)))).open("train")
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(copy.__getitem__, range(54)))
    for i, example in enumerate(again):
        np.testing.assert_array_equal(example["image"], source[i]["image"])
        assert example["label"] == source[i]["label"]
    for index in (-1, 54):
        with pytest.raises(IndexError):
            source[index]


def test_other_pixels_labels_or_channels_change_the_digest_and_names_do_not(tmp_path):
    images = drawn(40)
    digest = Images(str(as_npz(tmp_path / "a", images))).digest()
    assert Images(str(as_npz(tmp_path / "b", images, "other.npz")), title="other").digest() == digest
    one_pixel = [(image.copy(), label) for image, label in images]
    one_pixel[17][0][3, 3] ^= 1
    one_label = [(image, (label + 1) % 10 if i == 17 else label) for i, (image, label) in enumerate(images)]
    others = [one_pixel, one_label, images[:-1], images + images[:1]]
    digests = [Images(str(as_npz(tmp_path / f"other{i}", some))).digest() for i, some in enumerate(others)]
    digests.append(Images(str(tmp_path / "a"), channels=3).digest())
    assert len({digest, *digests}) == 6


def test_labels_of_a_stated_number_of_classes_may_have_gaps_and_others_are_broken(tmp_path):
    as_npz(tmp_path, [(image, 7 if label == 3 else label % 3) for image, label in drawn(30, classes=4)])
    found = Images(str(tmp_path), classes=7)
    assert found.describe("train", "test").num_classes == 7
    train = found.open("train")
    without = np.flatnonzero(train.labels(np.arange(27)) == NO_CLASS)
    assert len(without)
    with pytest.raises(BrokenImage, match=r"data\.npz at row \d+: its label is 7, but the classes are 0 \.\. 6"):
        train[int(without[0])]


def test_members_of_a_tar_are_grouped_by_their_keys(tmp_path):
    (first, _), (second, _) = drawn(2)
    members = [("x/1.jpeg.txt", b"no image"), ("x/1.PNG", encode(first)), ("x/1.json", b'{"label": 1}')]
    members += [("x/.hidden.png", b""), ("notes.txt", b"text"), ("y/1.input.png", encode(second)), ("y/1.cls", b"0\n")]
    tar_with(tmp_path / "a.tar", *members)
    found = Images(str(tmp_path / "a.tar"))
    assert contents(found.open("train+test")) == {(1, first.tobytes()), (0, second.tobytes())}


def test_broken_images_are_told_with_file_and_offset(tmp_path):
    image = encode(drawn(1)[0][0])
    members = [(f"{i}.png", image) for i in range(3)] + [("3.png", image[:40]), ("4.png", b"")]
    tar_with(tmp_path / "a.tar", *[pair for name, x in members for pair in ((name, x), (f"{name[0]}.cls", b"0"))])
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "5.png", image)
        add(tar, "5.cls", b"five")
    source = Images(str(tmp_path)).open("train+test")
    first, second, third = sorted(problem.replace(str(tmp_path), "") for problem in broken(source))
    assert first.startswith("/a.tar at byte 6656 (3): ")
    assert second == "/a.tar at byte 8704 (4): it has no image"
    assert third == "/b.tar at byte 512 (5): its label cannot be read"


def test_an_image_of_too_many_pixels_is_broken(tmp_path, monkeypatch):
    as_folder(tmp_path, drawn(10, classes=1))
    whole = io.BytesIO()
    Image.new("L", (300, 300)).save(whole, "PNG")
    (tmp_path / "class 0" / "bomb.png").write_bytes(whole.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (problem,) = broken(Images(str(tmp_path)).open("train+test"))
    assert "bomb.png: Image size (90000 pixels) exceeds limit" in problem
