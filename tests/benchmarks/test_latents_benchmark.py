"""The benchmark of latents, on a small network: its JSON output is a stable interface."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from known_tokenizers import Rearranged

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.recipes.pretrain import latent_umd
from umd_eqx.runs.tokenizers import LoadedTokenizer
from umd_eqx.training.flops import encode_flops

FILE = Path(__file__).parents[2] / "benchmarks" / "latents.py"
TINY = ["--batch", "8", "--rounds", "1"]


@pytest.fixture
def latents(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_latents", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    # Steps as short as they may be, on one of the eight devices.
    config = latent_umd()
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, variant="mu/1"))
    monkeypatch.setattr(module, "latent_umd", lambda: small)
    monkeypatch.setattr("umd_eqx.recipes.build.make_mesh", lambda **_: make_mesh(jax.devices()[:1]))
    monkeypatch.setattr(module, "measured_peak_flops", lambda: 1e12)
    return module


def test_its_rows_have_what_was_promised(latents, tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert latents.run([*TINY, "--json", str(file)]) == 0
    encoding, stored, on_the_way = json.loads(file.read_text())
    assert [row["what"] for row in (encoding, stored, on_the_way)] == [
        *("encoding", "step, latents stored", "step, latents on the way")
    ]
    assert encoding["mfu"] == pytest.approx(encoding["images_per_s"] * encoding["flops"] / 1e12)
    assert encoding["flops"] > 1e7
    assert stored["ratio"] == 1
    for row in (stored, on_the_way):
        assert row["images_per_s"] == pytest.approx(8 / row["ms"] * 1e3)
        assert row["ratio"] == pytest.approx(row["ms"] / stored["ms"])
    said = capsys.readouterr().out
    assert "8 images of 28 px per batch" in said
    assert "ratio 1.00" in said


def test_of_images_with_other_channels_only_the_encoding_is_measured(latents, tmp_path, monkeypatch):
    tokenizer = Rearranged.init(factor=2, channels=3, logvar=0.0)
    monkeypatch.setattr(latents, "load_tokenizer", lambda source: LoadedTokenizer(tokenizer, "0", source))
    file = tmp_path / "rows.json"
    assert latents.run([*TINY, "--tokenizer", "colour", "--size", "8", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert (row["what"], row["tokenizer"]) == ("encoding", "colour")
    assert row["flops"] == encode_flops(tokenizer, (8, 8, 3))


def test_the_least_time_leaves_out_the_first_call(latents, monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 20.2])
    monkeypatch.setattr(latents.time, "perf_counter", lambda: next(clock))
    assert latents.min_seconds([lambda: jnp.zeros(())], rounds=2) == [pytest.approx(0.2)]


@pytest.mark.parametrize(
    "words", [["--batch", "0"], ["--rounds", "0"], ["--size", "0"], ["--size", "30"], ["--json", "nowhere/a.json"]]
)
def test_numbers_that_cannot_work_are_refused(latents, words):
    with pytest.raises(BadInput) as error:
        latents.run(words)
    assert f"--{error.value.field}" == words[0]
