"""Files at URLs, in memory and on a disk."""

import importlib.util

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.remote import Remote, is_inner_name, is_url, reason, require_url


@pytest.fixture(params=["memory", "file"])
def remote(request, tmp_path) -> Remote:
    return Remote("memory://remote/run/" if request.param == "memory" else f"file://{tmp_path}/some/run", "where")


def test_what_is_written_is_listed_read_and_deleted(remote, tmp_path):
    assert remote.list() == {}
    assert remote.sizes() == {}
    remote.delete("nothing")
    local = tmp_path / "local.bin"
    local.write_bytes(b"12345")
    remote.upload(local, "folder/inner/a.bin")
    remote.write("b.txt", b"old")
    remote.write("b.txt", b"new!")
    assert remote.list() == {"folder": None, "b.txt": 4}
    assert remote.sizes() == {"folder/inner/a.bin": 5, "b.txt": 4}
    assert remote.read("b.txt") == b"new!"
    assert remote.exists("b.txt")
    remote.download("folder/inner/a.bin", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"12345"
    with pytest.raises(FileNotFoundError):
        remote.read("c.txt")
    with pytest.raises(FileNotFoundError):
        remote.download("c.txt", tmp_path / "c")
    remote.delete("folder")
    assert remote.list() == {"b.txt": 4}
    remote.delete("b.txt")
    assert not remote.exists("b.txt")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("runs/umd", "'runs/umd' is not a URL"),
        ("nope://bucket/x", "'nope://bucket/x' has no supported protocol"),
        ("simplecache::memory://x", "has no supported protocol"),
        ("https://example.com/x", "has no supported protocol"),
        ("://x", "has no supported protocol"),
        ("gs://", "does not name a folder"),
        ("memory:///", "does not name a folder"),
        ("file://tmp/x", "does not name a folder"),
        ("memory://bucket/../x", "does not name a folder"),
        ("memory://bucket/\n", "has no supported protocol"),
        ("s3://key:hush@bucket/x", "contains a password or a query"),
        ("s3://key:hu/sh@bucket/x", "contains a password or a query"),
        ("gs://bucket/x?token=hush", "contains a password or a query"),
        ("nope://key:hush@bucket/x", "contains a password or a query"),
    ],
)
def test_what_cannot_be_used_is_refused_and_no_secret_is_repeated(url, problem):
    with pytest.raises(BadInput, match=problem) as caught:
        require_url("checkpoint.mirror", url)
    assert caught.value.field == "checkpoint.mirror"
    assert "hush" not in str(caught.value)
    assert "hu/sh" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("url", "package"), [("gs://b/x", "gcsfs"), ("s3://b/x", "s3fs"), ("abfs://c@a/x", "adlfs")])
def test_a_missing_package_is_named(url, package):
    if importlib.util.find_spec(package) is not None:
        require_url("where", url)
        return
    with pytest.raises(BadInput, match=f"needs the package {package}. Run `pip install {package}`"):
        require_url("where", url)


def test_local_paths_are_no_urls_and_names_stay_in_their_folder():
    assert [is_url(path) for path in ("gs://b", "runs/a", "C:/x", None)] == [True, False, False, False]
    inner = ("a", "a/b.c", "../a", "a/../b", "/a", "a//b", "a\\b", "a\0b", "", ".")
    assert [is_inner_name(name) for name in inner] == [True, True, *[False] * 8]


def test_the_reason_of_an_error_is_a_line_without_secrets():
    error = OSError("GET https://user:hush@host/x?sig=hush failed\nand more")
    assert reason(error) == "GET https://...@host/x?... failed"
    assert reason(TimeoutError()) == "TimeoutError"
