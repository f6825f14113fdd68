"""The command that converts the published Inception weights: what it refuses, and all of its way with PyTorch."""

import hashlib
import importlib.util
import io
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from umd_eqx.core.tensors import read_tensors
from umd_eqx.models.extractors.inception_table import parameter_shapes
from umd_eqx.models.extractors.pretrained_inception import Published, convert_inception

SCRIPT = Path(__file__).parents[3] / "experiments" / "convert_inception.py"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs it with these words; gives its exit status and the line it ends with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out, error = capsys.readouterr()
        assert end.value.code is None or isinstance(end.value.code, int)
        return end.value.code or 0, (error or out).rstrip("\n")

    return call


def test_help_names_its_words(command):
    status, text = command("--help")
    assert status == 0
    assert re.search(r"SOURCE.*OUT.*--download", text, re.S)


def test_another_file_is_refused_unopened(command, tmp_path):
    source, out = tmp_path / "file.pth", tmp_path / "out.safetensors"
    source.write_bytes(b"no weights")
    status, line = command(source, out)
    assert status == 2
    assert re.fullmatch(r"error: SOURCE: .* has 10 bytes, not 95,628,359\. .*", line)
    assert not out.exists()


def test_a_file_that_is_not_there(command, tmp_path):
    status, line = command()
    assert status == 2
    assert line.startswith(f"error: SOURCE: there is no file {tmp_path / 'cache' / 'umd_eqx'}")


def test_nothing_is_fetched_without_torch(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, line = command("--download")
    assert (status, line) == (2, 'error: SOURCE: reading it needs torch. Run: pip install "umd_eqx[parity]"')


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason='needs pip install "umd_eqx[parity]"')
def test_the_way_from_a_pytorch_file_to_ours(tmp_path, capsys):
    import torch  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    state = {"fc.bias": rng.normal(size=1008).astype(np.float32)}
    parts = {"scale": "bn.weight", "bias": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    for name, shape in parameter_shapes().items():
        layer, _, part = name.rpartition(".")
        if part == "kernel":
            theirs, order = ("fc.weight", (1, 0)) if layer == "fc" else (f"{layer}.conv.weight", (3, 2, 0, 1))
            state[theirs] = np.full([shape[axis] for axis in order], rng.normal(), np.float32)
        elif layer != "fc":
            state[f"{layer}.{parts[part]}"] = rng.normal(size=shape).astype(np.float32)
    buffer = io.BytesIO()
    torch.save({name: torch.tensor(array) for name, array in state.items()}, buffer)
    data = buffer.getvalue()
    source, out = tmp_path / "file.pth", tmp_path / "new" / "out.safetensors"
    source.write_bytes(data)
    published = Published("https://localhost/file.pth", hashlib.sha256(data).hexdigest(), len(data))
    assert runpy.run_path(str(SCRIPT))["convert"](source, out, published=published) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    tensors, texts = read_tensors(out)
    assert (texts["source_sha256"], texts["source"]) == (published.sha256, published.url)
    expected = convert_inception(state)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name])
