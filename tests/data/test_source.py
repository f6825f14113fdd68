import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_sets import encode, image_features, picture, write

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.decoding import EncodedImage, decode_image
from umd_eqx.data.source import BrokenImage, TfdsSource, describe, open_source


def refused(blamed, function, *arguments, **keywords):
    with pytest.raises(BadInput) as error:
        function(*arguments, **keywords)
    assert error.value.field == blamed
    assert "\n" not in str(error.value)
    return str(error.value)


def test_describe(grey_root, colour_root):
    assert describe("tiny", str(grey_root), "train[:90%]", "test") == DataSpec("tiny", 36, 3, 9, 7, 1, 5)
    assert describe("tiny", str(colour_root), "train", "test") == DataSpec("tiny", 6, 2, None, None, 3, 5)


@pytest.mark.parametrize("split", ["nosuch", "train[", "train[30:50]", ""])
def test_an_unknown_split_is_refused(grey_root, split):
    assert "train, test" in refused("data.train_split", describe, "tiny", str(grey_root), split, "test")
    assert "train, test" in refused("data.test_split", describe, "tiny", str(grey_root), "train", split)
    refused("data.test_split", open_source, "tiny", str(grey_root), split, field="data.test_split")


@pytest.mark.parametrize("split", ["train[:0]", "train[5:5]"])
def test_a_split_without_images_is_refused(grey_root, split):
    assert "has no images" in refused("data.train_split", open_source, "tiny", str(grey_root), split)


@pytest.mark.parametrize("root", ["grey_root", "colour_root"])
@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_images_and_labels_come_back(request, root, memory_limit):
    folder = request.getfixturevalue(root) / "tiny/1.0.0"
    source = TfdsSource(folder, "test", memory_limit=memory_limit)
    for _ in range(2):
        for i in range(len(source)):
            example = source[i]
            expected = picture(100 + i, 9, 7, 1) if root == "grey_root" else picture(i, 8 + i, 13 - i, 3)
            np.testing.assert_array_equal(example["image"], expected)
            assert example["label"] == i
    with pytest.raises(IndexError):
        source[len(source)]
    with pytest.raises(IndexError):
        source[-1]


@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_an_image_of_another_size_is_broken_before_its_pixels_are_decoded(grey_root, monkeypatch, memory_limit):
    source = TfdsSource(grey_root / "tiny/1.0.0", "test", memory_limit=memory_limit)
    large = encode(np.zeros((3000, 3000, 1), np.uint8))
    assert len(large) < 20_000
    record = source._record(1)
    monkeypatch.setattr(source, "_record", lambda i: dict(record) | {"image": large})
    monkeypatch.setattr(EncodedImage, "pixels", lambda *_: pytest.fail("its pixels were decoded"))
    with pytest.raises(BrokenImage, match="its size is 3000 x 3000, not 9 x 7"):
        source._decode(1, source._record(1))


def test_a_slice_holds_its_part(grey_root):
    whole = open_source("tiny", str(grey_root), "train")
    source = open_source("tiny", str(grey_root), "train[75%:]")
    assert len(source) == 10
    assert source.spec.num_train == 40
    np.testing.assert_array_equal(source[0]["image"], whole[30]["image"])


def test_a_grey_picture_among_colours_becomes_three_channels(colour_root):
    image = open_source("tiny", str(colour_root), "train")[5]["image"]
    np.testing.assert_array_equal(image, np.repeat(picture(5, 6, 6, 1), 3, axis=-1))


def test_decode_image():
    colour = picture(0, 5, 4, 3)
    np.testing.assert_array_equal(decode_image(encode(colour), 3), colour)
    assert decode_image(encode(colour), 1).shape == (5, 4, 1)
    assert decode_image(encode(np.concatenate([colour, colour[..., :1]], -1)), 3).shape == (5, 4, 3)
    smooth = np.full((16, 16, 3), 90, np.uint8)
    np.testing.assert_allclose(decode_image(encode(smooth, "JPEG"), 3), smooth, atol=2)


def test_kept_images_cannot_be_written_to(grey_root):
    source = open_source("tiny", str(grey_root), "test")
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][:] = 0


def test_kept_images_need_no_file(grey_root):
    source = open_source("tiny", str(grey_root), "test")
    before = [source[i]["image"].copy() for i in range(3)]
    source._records = None
    for i in range(3):
        np.testing.assert_array_equal(source[i]["image"], before[i])


def test_it_pickles_and_threads_read_the_same(grey_root):
    source = open_source("tiny", str(grey_root), "train[18:]")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.spec == source.spec
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda i: copy[i % len(copy)]["image"], range(88)))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, picture(18 + i % 22, 9, 7, 1))


@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_a_broken_image_is_named(grey_root, memory_limit):
    source = TfdsSource(grey_root / "tiny/1.0.0", "train", memory_limit=memory_limit)
    for _ in range(2):
        with pytest.raises(BrokenImage, match="image 17 is broken") as error:
            source[17]
        assert error.value.index == 17
    np.testing.assert_array_equal(source[18]["image"], picture(18, 9, 7, 1))


def test_an_image_of_another_size_than_stated_is_broken(tmp_path):
    records = [{"image": encode(picture(i, 4, 4 + i, 1)), "label": 0} for i in range(2)]
    source = TfdsSource(write(tmp_path, {"train": records}, image_features((4, 4, 1))), "train")
    assert source[0]["image"].shape == (4, 4, 1)
    with pytest.raises(BrokenImage, match="4 x 5, not 4 x 4"):
        source[1]


def test_a_missing_or_damaged_file_is_refused(grey_root, tmp_path):
    folder = shutil.copytree(grey_root / "tiny/1.0.0", tmp_path / "tiny/1.0.0")
    (records,) = folder.glob("*train*")
    content = records.read_bytes()
    records.unlink()
    refused("data.source.dir", open_source, "tiny", str(tmp_path), "train")
    records.write_bytes(content[: len(content) // 2])
    refused("data.source.dir", open_source, "tiny", str(tmp_path), "train")
    (folder / "features.json").unlink()
    refused("data.source.dir", open_source, "tiny", str(tmp_path), "test")


@pytest.mark.parametrize("limit", [0, 2**20])
def test_images_without_labels_have_no_class(tmp_path, limit):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(4, 4, 1), encoding_format="png")})
    images = [picture(i, 4, 4, 1) for i in range(3)]
    folder = write(tmp_path, {"train": [{"image": encode(image)} for image in images]}, features)
    source = TfdsSource(folder, "train", memory_limit=limit)
    assert (source.spec.num_classes, source.labels(np.arange(3)).tolist()) == (0, [-1] * 3)
    for i in (2, 0, 2, 1):
        example = source[i]
        np.testing.assert_array_equal(example["image"], images[i])
        assert example["label"] == -1


def test_a_data_set_without_images_or_whose_labels_are_no_classes_is_refused(tmp_path):
    image = tfds.features.Image(shape=(4, 4, 1), encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=2)
    record = encode(picture(0, 4, 4, 1))
    cases = {
        "textual": ({"image": image, "label": tfds.features.Text()}, {"image": record, "label": "cat"}),
        "pictureless": ({"picture": image, "label": label}, {"picture": record, "label": 0}),
    }
    for case, (features, example) in cases.items():
        write(tmp_path / case, {"train": [example], "test": [example]}, tfds.features.FeaturesDict(features))
        refused("data.source.name", describe, "tiny", str(tmp_path / case), "train", "test")


def test_secret_labels_are_refused(tmp_path):
    records = [{"image": encode(picture(0, 4, 4, 1)), "label": -1}]
    folder = write(tmp_path, {"test": records}, image_features((4, 4, 1)))
    assert "has no labels" in refused("data.test_split", TfdsSource, folder, "test", field="data.test_split")


def test_sixteen_bit_images_are_refused(tmp_path):
    image = tfds.features.Image(shape=(4, 4, 1), encoding_format="png", dtype=np.uint16)
    features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=2)})
    example = {"image": encode(picture(0, 4, 4, 1)), "label": 1}
    folder = write(tmp_path, {"train": [example]}, features)
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "array_record"
    assert "uint16" in refused("data.source.name", TfdsSource, folder, "train")


def test_other_pictures_of_an_example_are_left_alone(tmp_path):
    image = tfds.features.Image(shape=(4, 4, 1), encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=2)
    features = tfds.features.FeaturesDict({"image": image, "label": label, "mask": image})
    example = {"image": encode(picture(0, 4, 4, 1)), "label": 1, "mask": b"no picture"}
    source = TfdsSource(write(tmp_path, {"train": [example]}, features), "train")
    np.testing.assert_array_equal(source[0]["image"], picture(0, 4, 4, 1))
