"""`experiments/layers.py` on a small run: the table, the result, the report, and what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from commands.conftest import called as called
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import on_one_device, rows, tiny
from PIL import Image

from umd_eqx.commands.cli import main
from umd_eqx.commands.export import export_weights
from umd_eqx.commands.layers import probe_layers
from umd_eqx.core.sharding import make_mesh
from umd_eqx.eval import Denoising, FewShot
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.runs.run import run

PROBE = FewShot(every=2, shots=3, seeds=2, test_images=40, pool=2000, knn=3, l2=None, raw_pixels=False, headline="both")
OWN = "eval/fewshot/both/top1"


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)
    monkeypatch.setattr("umd_eqx.commands.layers.make_mesh", lambda: make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of two steps whose probe sees noised images."""
    run_dir = tmp_path_factory.mktemp("runs") / "probed"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        denoised = Denoising(every=2, images=8, pictures=2, levels=(0.5,), shown_levels=(0.5,))
        evaluators = {"fewshot": FewShot(**{**vars(PROBE), "time": 0.051}), "denoising": denoised}
        run(tiny(eval=evaluators, optim__steps=2, data__eval_batch_size=16), run_dir=run_dir)
    return run_dir


def test_the_run_s_own_probe_is_one_cell_of_the_map(called, finished, here):
    words = ("--run", str(finished), "--levels", "0.5", "0.051", "0.5", "--json", "map.json", "--out", "map.png")
    code, out, error = called(probe_layers, *words)
    assert (code, error) == (0, "")
    (result,) = json.loads((here / "map.json").read_text())
    assert (result["layers"], result["numbers"]) == (["encoder 1", "encoder 2", "encoder 3", "decoder 1"], [1, 2, 3, 4])
    assert result["levels"] == [0.051, 0.5]
    measured = next(row[OWN] for row in rows(finished) if row["step"] == 2 and OWN in row)
    assert result["metrics"]["encoder 3/t=0.051/top1"] == result["top1"][2][0] == measured
    assert np.shape(result["top1"]) == np.shape(result["spread"]) == (4, 2)
    settings = {"shots": 3, "seeds": 2, "l2": None, "pool": 2000, "test_images": 40, "features": "both"}
    assert result["settings"] == settings | {"weights": "raw"}
    assert result["recipe"]["eval"]["fewshot"]["time"] == 0.051
    (line,) = (line for line in out.splitlines() if line.startswith("  3  encoder 3"))
    assert f"{measured:.2f}" in line
    assert f"the representation of the network: encoder 3 at t=0.051, {measured:.2f} %" in out
    with Image.open("map.png") as picture:
        assert picture.width > 400


def test_the_report_shows_the_map_and_everything_else_as_before(called, finished):
    before = (finished / "report.html").read_text()
    sections = [part.split("<")[0] for part in before.split("<h2>")[1:]]
    code, out, _ = called(probe_layers, "--run", str(finished), "--layers", "2", "3", "--features", "patches")
    assert code == 0
    assert f"report: {finished / 'report.html'}" in out
    after = (finished / "report.html").read_text()
    assert "Top-1 of a ridge probe in percent, patches, raw weights, step 2" in after
    assert [p for p in (s.split("<")[0] for s in after.split("<h2>")[1:]) if p in sections] == sections
    assert "Probe accuracy" in sections
    results = [json.loads(file.read_text())[0] for file in (finished / "eval").glob("layers-*.json")]
    (result,) = (result for result in results if result["settings"]["features"] == "patches")
    assert result["levels"] == [0.0, 0.051, 0.1, 0.25, 0.5, 0.75]
    assert result["heatmap"]["marked"] == [1, 1]


def test_an_export_has_a_map_as_well(called, finished, here):
    assert called(export_weights, "--run", str(finished), "--out", "net.safetensors")[0] == 0
    words = ("--run", "net.safetensors", "--shots", "2", "--seeds", "1", "--test-images", "20", "--pool", "500")
    code, out, error = called(probe_layers, *words, "--levels", "0", "--json", "map.json")
    assert (code, error) == (0, "")
    (result,) = json.loads((here / "map.json").read_text())
    assert result["recipe"] is None
    assert result["weights"] == from_pretrained("net.safetensors").digest
    assert "report:" not in out


def test_features_of_noise_are_warned_of_where_the_network_never_saw_any(called, exported):
    quick = ("--shots", "1", "--seeds", "1", "--test-images", "10", "--pool", "200", "--layers", "1")
    run = exported(labels=False, denoises=False)
    assert "was not trained on noised images" in called(probe_layers, "--run", run, *quick, "--levels", "0", "0.5")[2]
    assert called(probe_layers, "--run", run, *quick, "--levels", "0")[2] == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layers", "0"), "--layers: 0 is not the number of a layer. Use 1 (encoder 1) .. 4 (decoder 1)"),
        (("--layers", "2", "5"), "--layers: 5 is not the number of a layer"),
        (("--levels", "1.5"), "--levels: 1.5 is outside [0, 1]"),
        (("--levels", "nan"), "--levels: nan is outside [0, 1]"),
        (("--shots", "0"), "--shots: 0 is not valid"),
        (("--l2", "0"), "--l2: 0.0 is not valid"),
        (("--batch-size", "0"), "--batch-size: 0"),
        (("--seed", "-1"), "--seed: -1 is outside"),
        (("--json", "nowhere/x.json"), "--json: there is no folder nowhere"),
        (("--out", "."), "--out: . is a folder"),
        (("--run", "nowhere"), "--run: there is no nowhere"),
        (("--data-dir", "nowhere"), "--data.dir: "),
    ],
)
def test_what_cannot_be_is_told_in_one_line(called, finished, here, words, said):
    run = () if "--run" in words else ("--run", str(finished))
    code, _, error = called(probe_layers, *run, *words)
    assert (code, len(error.splitlines())) == (2, 1)
    assert said in error
    assert not list(here.iterdir())


def test_it_is_a_command_of_a_file_of_ones_own(capsys):
    with pytest.raises(SystemExit) as end:
        main({"mine": tiny}, ["layers", "--help"])
    assert end.value.code == 0
    assert "--levels" in capsys.readouterr().out
