"""Safetensors files: what is written is read again, and a hostile file is refused with one line and nothing else."""

import json
import os
import pickle
import resource
import stat
import struct
import sys
import tracemalloc

import equinox as eqx
import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import fill, named_leaves, read_tensors, write_tensors

BODY = bytes(8)
A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


class Trap:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def file(header: object, body: bytes = BODY, length: int | None = None) -> bytes:
    """A safetensors file, byte by byte, with any header, and a length of it that may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def changed(**fields: object) -> bytes:
    return file({"a": A | fields})


HOSTILE = {
    "empty": b"",
    "shorter than a length": b"\x00" * 7,
    "header of no length": b"\x00" * 8,
    "header longer than the file": file({"a": A}, length=10_000),
    "huge header": file({"a": A}, length=2**60),
    "largest header": file({"a": A}, length=2**64 - 1),
    "header cut off": file({"a": A})[:20],
    "data cut off": file({"a": A}, BODY[:4]),
    "data left over": file({"a": A}, BODY + BODY),
    "offsets beyond the end": changed(data_offsets=[8, 16]),
    "offsets in tebibytes": changed(shape=[2**40], data_offsets=[0, 2**42]),
    "offsets backwards": changed(data_offsets=[8, 0]),
    "offsets below zero": changed(data_offsets=[-8, 0]),
    "offsets that overlap": file({"a": A, "b": A | {"data_offsets": [4, 12]}}, bytes(12)),
    "two tensors on one place": file({"a": A, "b": A}),
    "a hole between two": file({"a": A, "b": A | {"data_offsets": [12, 20]}}, bytes(20)),
    "shape that is too large": changed(shape=[3]),
    "shape that is too small": changed(shape=[1]),
    "shape whose product overflows": changed(shape=[2**62, 2**62]),
    "shape that wraps around to the right length": changed(shape=[2**63, 2**63, 2]),
    "shape below zero": changed(shape=[-2]),
    "shape of half an element": changed(shape=[2.5]),
    "type that is none": changed(dtype="F99"),
    "type that numpy has not": changed(dtype="F8_E4M3", shape=[8]),
    "name that is not UTF-8": file(b'{"\xff": 1}'),
    "header that is no JSON": file(b'{"a": '),
    "header that is a list": file([1]),
    "header that nests deeply": file(b"[" * 100_000),
    "texts that are none": file({"__metadata__": {"x": 5}, "a": A}),
}


def refusal(path: os.PathLike[str]) -> str:
    with pytest.raises(BadInput) as refused:
        read_tensors(path, "inception_weights")
    message = str(refused.value)
    assert refused.value.field == "inception_weights"
    assert "\n" not in message
    assert message.isprintable()
    assert "Give a .safetensors file" in message
    return message


def peak() -> int:
    """The most bytes that this process has had in memory so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_lies_is_refused(tmp_path, data):
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    before = peak()
    try:
        message = refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 1_000_000  # most of it is the traceback
    finally:
        tracemalloc.stop()
    assert peak() - before < 32_000_000  # what is not Python's: no lie is smaller than this but the file itself
    assert str(path) in message


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_and_not_executed(tmp_path, protocol):
    trap, path = tmp_path / "executed", tmp_path / "file.safetensors"
    path.write_bytes(pickle.dumps(Trap(str(trap)), protocol))
    assert "nothing in this file was executed" in refusal(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # it would have been seen


def test_a_pickle_among_the_arrays_is_bytes(tmp_path):
    trap, path = tmp_path / "executed", tmp_path / "file.safetensors"
    data = pickle.dumps(Trap(str(trap)))
    write_tensors(path, {"a": np.frombuffer(data, np.uint8)}, {"x": data.decode("latin-1")})
    tensors, texts = read_tensors(path)
    assert (tensors["a"].tobytes(), texts["x"].encode("latin-1")) == (data, data)
    assert not trap.exists()


def test_what_is_no_file(tmp_path):
    assert "there is no file" in refusal(tmp_path / "gone")
    assert "there is no file" in refusal(tmp_path / "gone" / "deeper")
    assert "is not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")  # and is not waited for


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {})
    path.chmod(stat.S_IWUSR)
    assert "cannot be read" in refusal(path)


def test_a_name_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(file({"\x1b[2J\r\na": A | {"data_offsets": [4, 12]}}))
    refusal(path)


@pytest.mark.parametrize("kept", range(0, 100, 7))
def test_a_file_cut_anywhere_is_refused(tmp_path, kept):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": np.arange(4.0), "b": np.ones(3, np.float16)}, {"x": "y"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * kept // 100])
    refusal(path)


# ---------------------------------------------------------------------------------------------------- what is written

DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool", jnp.bfloat16])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensor(draw: st.DrawFn) -> np.ndarray:
    """Any array, also without axes, without elements, turned, stepped through backwards, or with a bit of each kind."""
    shape, dtype = draw(SHAPES), np.dtype(draw(DTYPES))
    length = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=length, max_size=length))
    array = (np.frombuffer(data, np.uint8) % 2 == 1) if dtype.kind == "b" else np.frombuffer(data, dtype)
    # np.flip makes a scalar of an array without axes.
    return np.asarray(draw(st.sampled_from([np.array, np.transpose, np.flip]))(array.reshape(shape)))


NAMES = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")


@hypothesis.given(st.dictionaries(NAMES, tensor(), max_size=4), st.dictionaries(NAMES, NAMES, max_size=3))
@hypothesis.settings(max_examples=60)
def test_what_is_written_is_read(tmp_path_factory, tensors, texts):
    path = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    write_tensors(path, tensors, texts)
    found, words = read_tensors(path)
    assert (words, found.keys()) == (texts, tensors.keys())
    for name, array in tensors.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes()  # the bits: a NaN is not equal to itself
    assert not list(path.parent.glob(f"{path.name}.*"))


def test_what_is_read_is_the_readers_own(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": np.zeros(3)})
    tensors, _ = read_tensors(path)
    tensors["a"] += 1
    np.testing.assert_array_equal(read_tensors(path)[0]["a"], 0)


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": np.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        write_tensors(tmp_path / "gone" / "file.safetensors", {})
    (tmp_path / f"file.safetensors.{os.getpid()}.tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        write_tensors(path, {"a": np.ones(3)})
    assert path.read_bytes() == before


def test_leaves_that_are_not_arrays_are_kept_and_not_written(tmp_path):
    def make(key):
        return eqx.nn.MLP(3, 2, 4, 1, activation=jax.nn.silu, key=key)

    network = make(jax.random.key(0))
    weights = {name: np.asarray(leaf) for name, leaf in named_leaves(network).items()}
    write_tensors(tmp_path / "a.safetensors", weights)
    tensors, _ = read_tensors(tmp_path / "a.safetensors")
    like = eqx.filter_eval_shape(make, jax.random.key(1))
    filled = fill(like, tensors, "a.safetensors", "weights", "Export it anew")
    np.testing.assert_array_equal(filled(jnp.ones(3)), network(jnp.ones(3)))
