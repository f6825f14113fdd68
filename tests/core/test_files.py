"""Files are replaced whole or not at all."""

import os

import pytest

from umd_eqx.core.files import replacing, save_json, write_atomically


def test_a_file_has_its_new_content_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with replacing(path) as new:
        new.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("suffix", [None, ".tmp"])
def test_after_an_error_the_old_file_is_left_alone(tmp_path, suffix):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with replacing(path, suffix=suffix) as new:
            new.write_bytes(b"half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file": b"old"}


def test_what_was_not_synced_is_not_renamed(tmp_path, monkeypatch):
    def fail(file):
        raise OSError("no space")

    path = tmp_path / "file.json"
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        save_json(path, {})
    assert list(tmp_path.iterdir()) == []


def test_with_a_suffix_the_file_of_a_killed_process_is_overwritten(tmp_path):
    path = tmp_path / "shard"
    (tmp_path / "shard.tmp").write_bytes(b"left behind")
    with replacing(path, suffix=".tmp") as new:
        new.write_bytes(b"new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"shard": b"new"}
