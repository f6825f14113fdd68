"""tfrecord files as TFDS writes them, read without TensorFlow. The framing here is written from its description."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_data_source
from etils import epath
from tiny_sets import encode, image_features, picture, write

from umd_eqx.core.errors import BadInput
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.crc32c import crc32c, masked_crc32c
from umd_eqx.data.source import BrokenImage
from umd_eqx.data.source_configs import TFDS
from umd_eqx.data.tfrecords import TfRecords, indexed

COUNTS = {"train": 30, "test": 4}


def by_definition(data: bytes) -> int:
    """CRC-32C bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_that_of_the_standard():
    # RFC 3720, appendix B.4, and the usual check value.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("length", [4095, 4096, 4097, 5000, 9999])
def test_the_checksum_of_long_records_is_that_of_its_definition(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == by_definition(data)
    changed = bytearray(data)
    changed[length // 2] ^= 4
    assert crc32c(bytes(changed)) != crc32c(data)


def framed(records: list[bytes]) -> bytes:
    parts = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += [length, struct.pack("<I", masked_crc32c(length)), record, struct.pack("<I", masked_crc32c(record))]
    return b"".join(parts)


def as_tfrecord(folder: Path, shards: int = 2) -> None:
    """Rewrites the array_record files of a TFDS data set as tfrecord files, in several shards."""
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        (old,) = folder.glob(f"*-{split['name']}.array_record*")
        source = array_record_data_source.ArrayRecordDataSource([str(old)])
        records = [source[i] for i in range(len(source))]
        each = -(-len(records) // shards)
        lengths = []
        for shard in range(shards):
            some = records[shard * each : (shard + 1) * each]
            name = f"tiny-{split['name']}.tfrecord-{shard:05}-of-{shards:05}"
            (folder / name).write_bytes(framed(some))
            lengths.append(str(len(some)))
        split["shardLengths"] = lengths
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        source.__exit__(None, None, None)
        old.unlink()
    (folder / "dataset_info.json").write_text(json.dumps(info))


def made(root: Path) -> Path:
    records = {
        split: [{"image": encode(picture(i, 9, 7, 1)), "label": i % 5} for i in range(count)]
        for split, count in COUNTS.items()
    }
    return write(root, records, image_features((9, 7, 1)))


@pytest.fixture
def root(tmp_path) -> Path:
    as_tfrecord(made(tmp_path / "root"))
    return tmp_path / "root"


def test_tfrecord_data_are_those_of_array_record(root, tmp_path):
    made(tmp_path / "expected")
    expected, found = (TFDS("tiny", str(folder)) for folder in (tmp_path / "expected", root))
    assert found.describe("train", "val") == expected.describe("train", "test")
    for split in ("train", "test", "train[10%:60%]", "train[20:]+test[:2]"):
        ours, theirs = found.open(split), expected.open(split)
        assert len(ours) == len(theirs)
        np.testing.assert_array_equal(ours.labels(np.arange(len(ours))), theirs.labels(np.arange(len(ours))))
        for i in range(len(ours)):
            np.testing.assert_array_equal(ours[i]["image"], theirs[i]["image"])


def test_it_is_found_in_the_environment_and_pickled(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    source = TFDS("tiny").open("train")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[17]["image"], source[17]["image"])


def test_damaged_records_are_skipped_and_told_with_file_and_offset(root):
    file = next(root.rglob("tiny-train.tfrecord-00001-of-00002"))
    offsets = indexed(epath.Path(file))
    content = bytearray(file.read_bytes())
    content[offsets[3] + 40] ^= 1  # in the content of a record
    content[offsets[10] + 2] ^= 1  # in a length: what follows cannot be found
    file.write_bytes(bytes(content))
    source = TFDS("tiny", str(root)).open("train")
    problems = {}
    for i in range(30):
        try:
            source[i]
        except BrokenImage as error:
            problems[i] = str(error)
    assert [*problems] == [18, 25, 26, 27, 28, 29]
    assert problems[18].endswith(f"{file} is damaged at byte {offsets[3]}")
    assert problems[27].endswith(f"{file} is damaged or cut short at byte {offsets[10]}, before it")
    np.testing.assert_array_equal(source.labels(np.array([17, 18, 25])) < 0, [False, True, True])


def test_a_file_cut_short_lacks_its_last_records(root):
    file = next(root.rglob("tiny-train.tfrecord-00001-of-00002"))
    file.write_bytes(file.read_bytes()[:-5])
    source = SkipBroken(TFDS("tiny", str(root)).open("train"))
    assert [source[i]["label"] for i in range(30)] == [i % 5 for i in range(29)] + [0]
    assert source.broken == {29}


def test_a_missing_file_is_refused(root):
    next(root.rglob("tiny-train.tfrecord-00001-of-00002")).unlink()
    with pytest.raises(BadInput, match=r"tfrecord-00001-of-00002 cannot be read \(No such file") as error:
        TFDS("tiny", str(root)).open("train")
    assert error.value.field == "data.source.dir"


def test_parts_of_files_are_read(tmp_path):
    for name, count in (("a", 5), ("b", 3)):
        (tmp_path / name).write_bytes(framed([f"{name}{i}".encode() for i in range(count)]))
    records = TfRecords([(tmp_path / "a", 3, 2), (tmp_path / "b", 0, 2)], lambda record: {"text": record})
    assert [records[i]["text"] for i in range(len(records))] == [b"a3", b"a4", b"b0", b"b1"]
    assert [record["text"] for record in records.__getitems__([3, 0])] == [b"b1", b"a3"]
