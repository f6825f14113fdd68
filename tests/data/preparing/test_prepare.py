"""A prepared data set: what TFDS and a run read from it, the same bytes whatever happened, and what is refused."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from imagenet_trees import (
    CLASSES,
    CMYK,
    GREY,
    PNG,
    ROTATED,
    TRUNCATED,
    training_images,
    validation_images,
    write_archives,
    write_folders,
)
from PIL import Image

from umd_eqx.core.errors import BadInput
from umd_eqx.data.decoding import decode_image
from umd_eqx.data.prepared import read_manifest, resize_of
from umd_eqx.data.preparing.originals import Originals, find_originals
from umd_eqx.data.preparing.prepare import Prepared, Progress, prepare
from umd_eqx.data.preparing.shards import Settings, fingerprint
from umd_eqx.data.source import Dataset
from umd_eqx.data.source_configs import TFDS
from umd_eqx.data.transforms import box_resize
from umd_eqx.recipes.config import DataConfig


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Originals:
    return find_originals(str(write_archives(tmp_path_factory.mktemp("in"))))


def run(originals: Originals, out: Path, size: int | None = None, per_shard: int | None = 5, **options):
    settings = Settings("imagenet2012", "5.1.0", size, size and "box", per_shard, fingerprint(originals))
    folder = out / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True, exist_ok=True)
    return prepare(originals, settings, folder, **options)


def whole(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def changes(found: Prepared | None) -> int:
    assert found is not None
    return sum(not facts["kept"] for facts in found.files)


def test_runs_and_tfds_read_every_image_with_its_label(originals, tmp_path):
    assert changes(run(originals, tmp_path)) == 6
    files = {name: data for images in training_images().values() for name, data in images.items()}
    del files[TRUNCATED]
    source = TFDS("imagenet2012", str(tmp_path))
    spec = source.describe("train", "validation")
    assert (spec.num_train, spec.num_test, spec.channels, spec.num_classes) == (17, 7, 3, 3)
    assert (spec.height, resize_of(source.open("train"))) == (None, None)
    builder = tfds.builder_from_directory(tmp_path / "imagenet2012" / "5.1.0")
    assert builder.info.features["label"].names == list(CLASSES)
    undecoded = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    stored = {record["file_name"].decode(): record for record in undecoded}
    assert stored.keys() == files.keys()
    for name, record in stored.items():
        assert CLASSES[record["label"]] == name.partition("_")[0]
        if name in (CMYK, PNG):
            image = Image.open(io.BytesIO(record["image"]))
            assert (image.format, image.mode) == ("JPEG", "RGB")
        else:
            assert record["image"] == files[name]
    # The registered builder of that name reads it, too, and so does a run.
    names = [record["file_name"].decode() for record in undecoded]
    decoded = tfds.data_source("imagenet2012", data_dir=tmp_path, split="train")
    ours = source.open("train")
    for name in (GREY, ROTATED):  # greys become RGB, and the EXIF orientation is ignored
        i = names.index(name)
        np.testing.assert_array_equal(ours[i]["image"], decode_image(files[name], 3))
        assert ours[i]["image"].shape == decoded[i]["image"].shape
    images, labels = validation_images()
    by_name = dict(zip(sorted(images), labels, strict=True))
    validation = builder.as_data_source("validation")
    assert [CLASSES[r["label"]] for r in validation] == [by_name[r["file_name"].decode()] for r in validation]


def test_the_manifest_tells_what_was_left_out_and_hashes_all_files(originals, tmp_path):
    found = run(originals, tmp_path, departures=["it is small"])
    assert found is not None
    manifest = read_manifest(tmp_path / "imagenet2012" / "5.1.0")
    assert manifest == found.manifest
    assert manifest is not None
    assert manifest["images"] == {"train": 17, "validation": 7}
    assert manifest["departures"] == ["it is small"]
    entries = [entry for facts in manifest["files"] for entry in facts["broken"]]
    assert [name for name, _ in entries] == [TRUNCATED]
    assert "truncated" in entries[0][1]
    converted = [entry for facts in manifest["files"] for entry in facts["converted"]]
    assert sorted(converted) == [[CMYK, "CMYK JPEG"], [PNG, "RGB PNG"]]
    assert str(tmp_path) not in json.dumps(manifest)
    other = run(originals, tmp_path / "other", per_shard=6)
    assert other is not None
    assert other.manifest["sha256"] != manifest["sha256"]


def test_downsampled_images_are_lossless_and_their_resize_is_known(originals, tmp_path):
    run(originals, tmp_path, size=16)
    files = {name: data for images in training_images().values() for name, data in images.items()}
    data = DataConfig(TFDS("imagenet2012", str(tmp_path)), size=16)
    spec = data.describe()
    assert (spec.height, spec.width, spec.channels) == (16, 16, 3)
    assert [resize_of(source) for source in data.open()] == ["box", "box"]
    records = tfds.data_source("imagenet2012", data_dir=tmp_path, split="train")
    assert len(records) == 17
    for record in records:
        original = decode_image(files[record["file_name"].decode()], 3)
        np.testing.assert_array_equal(record["image"], box_resize(original, 16))


def test_the_same_bytes_from_archives_and_folders_and_any_number_of_processes(originals, tmp_path):
    assert changes(run(originals, tmp_path / "one")) == 6
    unpacked = find_originals(str(write_folders(tmp_path / "unpacked")))
    seen = []
    found = run(unpacked, tmp_path / "two", workers=2, progress=Progress(seen.append))
    assert changes(found) == 6
    assert seen[-1] == 25
    assert len(whole(tmp_path / "one")) == 6 + 4
    assert whole(tmp_path / "two") == whole(tmp_path / "one")


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_and_begun_again_it_leaves_the_same_bytes(originals, tmp_path, workers):
    run(originals, tmp_path / "whole")
    out, calls = tmp_path / "out", 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > (12 if workers == 1 else 0)

    assert run(originals, out, workers=workers, progress=Progress(stop=stop)) is None
    folder = out / "imagenet2012" / "5.1.0"
    assert not (folder / "dataset_info.json").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*array_record*")}
    assert len(before) == (2 if workers == 1 else 0)
    (folder / "imagenet2012-train.array_record-00003-of-00004.999.tmp").write_bytes(b"of a killed process")
    assert changes(run(originals, out)) == 6 - len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert whole(out) == whole(tmp_path / "whole")


def test_a_finished_one_is_left_alone_and_a_damaged_file_written_again(originals, tmp_path):
    run(originals, tmp_path)
    before = whole(tmp_path)
    again = run(originals, tmp_path)
    assert again is not None
    assert not again.changed
    assert whole(tmp_path) == before
    path = next((tmp_path / "imagenet2012" / "5.1.0").glob("*validation*00001*"))
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    assert changes(run(originals, tmp_path)) == 1
    assert whole(tmp_path) == before
    path.unlink()
    assert changes(run(originals, tmp_path)) == 1
    assert whole(tmp_path) == before


def test_other_settings_and_foreign_folders_are_refused(originals, tmp_path):
    run(originals, tmp_path)
    before = whole(tmp_path)
    for options, field in (({"size": 16}, "size"), ({"per_shard": 7}, "per_shard")):
        with pytest.raises(BadInput, match=rf"^{field}: .* has another {field} "):
            run(originals, tmp_path, **options)
    fewer = originals._replace(splits={"train": originals.splits["train"]})
    with pytest.raises(BadInput, match=r"^src: .* was prepared from other images"):
        run(fewer, tmp_path)
    assert whole(tmp_path) == before
    folder = tmp_path / "imagenet2012" / "5.1.0"
    (folder / "manifest.json").unlink()  # as TFDS itself leaves it
    with pytest.raises(BadInput, match=r"^out: .* was not written by this command"):
        run(originals, tmp_path)


def test_too_many_broken_images_and_too_small_a_disk_stop_it(originals, tmp_path, monkeypatch):
    with pytest.raises(BadInput) as error:
        run(originals, tmp_path / "a", max_broken=0)
    assert error.value.field == "max_broken"
    assert "1 broken images, more than 0, in train; the last: " in error.value.problem
    assert "ILSVRC2012_img_train.tar at byte " in error.value.problem
    assert f"({CLASSES[0]}/{TRUNCATED}): image file is truncated" in error.value.problem
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("umd_eqx.data.preparing.prepare.shutil.disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match=r"^out: the disk of .* has 0.0 GB free"):
        run(originals, tmp_path / "b")


def test_a_label_out_of_range_is_a_broken_image(tmp_path):
    images, labels = np.zeros((30, 4, 4, 3), np.uint8), np.arange(30) % 3
    images += np.arange(30, dtype=np.uint8)[:, None, None, None]
    labels[4] = -7
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    found = run(find_originals(str(tmp_path / "some.npz")), tmp_path / "out")
    assert found is not None
    broken = [entry for facts in found.files for entry in facts["broken"]]
    assert [entry[:2] for entry in broken] == [["4", "its label is not in 0 .. 2"]]
    assert sum(found.manifest["images"].values()) == 29


def test_classes_of_imagenet_in_another_order_are_refused_for_training(originals, tmp_path):
    from umd_eqx.data.preparing.canonical import official_classes

    run(originals, tmp_path)
    folder = tmp_path / "imagenet2012" / "5.1.0"
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "1000"
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "label.labels.txt").write_text("\n".join(official_classes()))
    assert Dataset("imagenet2012", str(tmp_path)).describe("train", "test").num_classes == 1000
    (folder / "label.labels.txt").write_text("\n".join(official_classes()[::-1]))
    with pytest.raises(BadInput, match=r"^data.source.dir: .* in another order"):
        Dataset("imagenet2012", str(tmp_path)).describe("train", "test")
