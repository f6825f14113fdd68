"""JSON from anywhere: what is refused, and that it takes neither long nor much memory."""

import json
import os
import resource
import time
import tracemalloc

import pytest
from etils import epath

from umd_eqx.core.cards import open_card
from umd_eqx.core.errors import BadInput
from umd_eqx.core.json_files import MOST_BYTES, MOST_DEPTH, parse_json, read_json, read_json_anywhere
from umd_eqx.report import read_metrics

VALUES = [None, 1, -2.5, 'a [ " { \\ } string', [], {}, {"a": [1, {"b": "]"}]}, 2**63, 1e300, "é"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_others_read_is_read(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=2))
    assert read_json(path) == read_json_anywhere(epath.Path(path)) == value


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_nesting_is_bounded():
    parse_json(nested(MOST_DEPTH))
    for content in (nested(MOST_DEPTH + 1), b'{"a":' * 10**6, b"[" * 10**7):
        with pytest.raises(ValueError, match=r"nested more than|more than \d+ values"):
            parse_json(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b" " * (MOST_BYTES + 1), "bytes of JSON"),
        (b"[" + b"[]," * 10**6 + b"[]]", "values in JSON"),
        (b'{"n": ' + b"9" * 65 + b"}", "a number of 65 digits"),
        (b'"' + b"\\" * 10**6, None),
        (b"\xff\xfe", None),
        (b"", None),
        (b"]" * 100, None),
    ],
    ids=["long", "wide", "digits", "open", "not utf-8", "empty", "closed"],
)
def test_all_else_is_a_value_error_soon_and_with_little_memory(content, said):
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said):
            parse_json(content)
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 20


@pytest.fixture
def no_file(request, tmp_path):
    """Something at a path that is not a regular file."""
    path = tmp_path / "card.json"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)
    return path


@pytest.mark.parametrize("no_file", ["pipe", "folder", "device", "loop"], indirect=True)
def test_what_is_no_regular_file_is_refused_without_waiting(no_file):
    with pytest.raises(OSError, match=r"regular file|directory|symbolic links"):
        read_json(no_file)
    with (
        pytest.raises(BadInput, match=r"card\.json cannot be read"),
        open_card(no_file.with_suffix(".safetensors"), "x", ""),
    ):
        pass
    with pytest.raises(BadInput, match="cannot be read"):
        read_metrics(no_file)


def test_a_large_file_is_not_read_whole(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="bytes of JSON"):
        read_json(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100e3
