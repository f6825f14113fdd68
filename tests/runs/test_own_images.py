"""Runs on images whose kind is found by looking, with labels and without."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.own_images import KINDS, as_npz, drawn
from data.tiny_sets import encode, write
from faults.tiny import arrays, assert_equal_bit_for_bit, on_one_device, rows, tiny
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.commands.cli import exit_with, main
from umd_eqx.commands.encode_latents import EncodedData, encode_latents
from umd_eqx.commands.evaluate import evaluate
from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import DataSpec
from umd_eqx.data.source_configs import TFDS
from umd_eqx.eval import FewShot
from umd_eqx.latents.store import LatentSource
from umd_eqx.objectives import Classification, LinearProbing
from umd_eqx.recipes.config import Config
from umd_eqx.runs.fitting import without_labels

PROBE = FewShot(every=4, shots=2, seeds=1, knn=3)


@pytest.fixture(autouse=True)
def one_device_everywhere(monkeypatch):
    on_one_device(monkeypatch)
    for command in ("evaluate", "probe", "encode_latents"):
        monkeypatch.setattr(f"umd_eqx.commands.{command}.make_mesh", lambda *_: make_mesh(jax.devices()[:1]))


def recipe() -> Config:
    config = tiny()
    return dataclasses.replace(config, eval=config.eval | {"fewshot": PROBE})


def labelled() -> Config:
    return dataclasses.replace(recipe(), model=dataclasses.replace(recipe().model, labels=True))


def pretrained(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main({"tiny": recipe, "labelled": labelled}, words)
    return end.value.code or 0


def test_a_run_is_the_same_on_every_kind_and_is_continued_on_another(tmp_path):
    roots = {name: make(tmp_path / name, drawn(40)) for name, make in KINDS.items()}
    for name in ("npz", "folder"):
        words = ("--run-dir", str(tmp_path / f"run {name}"), "--data.dir", str(roots[name]))
        assert pretrained("tiny", *words, "--limit-steps", "4") == 0
    moved = ("--run-dir", str(tmp_path / "run moved"), "--limit-steps")
    assert pretrained("tiny", *moved, "2", "--data.dir", str(roots["tars"])) == 0
    assert pretrained("tiny", *moved, "4", "--data.dir", str(roots["parquet"])) == 0
    config = dataclasses.replace(recipe(), data=dataclasses.replace(recipe().data, source=TFDS(dir=str(roots["npz"]))))
    config = dataclasses.replace(config, data=config.data.located())
    expected = arrays(tmp_path / "run npz", config)
    for name in ("folder", "moved"):
        assert_equal_bit_for_bit(arrays(tmp_path / f"run {name}", config), expected)
    kept = json.loads((tmp_path / "run npz" / "config.json").read_text())["config"]["data"]
    assert (kept["source"]["type"], kept["source"]["title"], len(kept["content"])) == ("Images", "npz", 32)


@pytest.mark.parametrize("preset", ["tiny", "labelled"])
def test_images_without_labels_are_trained_on_and_it_is_said_what_is_left_out(tmp_path, capsys, preset):
    root = as_npz(tmp_path / "some", [(image, None) for image, _ in drawn(40)])
    words = (preset, "--run-dir", str(tmp_path / "run"), "--data.dir", str(root), "--limit-steps", "4")
    assert pretrained(*words, "--dry-run") == 0
    assert "without labels: no evaluation fewshot" in capsys.readouterr().out
    assert pretrained(*words) == 0
    said = "so there is no evaluation fewshot" + (" and conditioning on labels" if preset == "labelled" else "")
    assert f"note: some has no labels, {said}\n" in capsys.readouterr().out
    names = {name for row in rows(tmp_path / "run") for name in row}
    assert any(name.startswith("eval/denoising") for name in names)
    assert not any("fewshot" in name for name in names)
    assert all(np.isfinite(row["train/loss"]) for row in rows(tmp_path / "run"))
    with pytest.raises(SystemExit):
        exit_with(evaluate, ["--run", str(tmp_path / "run"), "--benchmark", "probe"])
    assert "some has no labels to probe for" in capsys.readouterr().err


def test_a_tfds_data_set_without_labels_is_trained_on(tmp_path, capsys):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png")})
    records = [{"image": encode(image)} for image, _ in drawn(40)]
    write(tmp_path, {"train": records, "test": records[:10]}, features)
    words = ("--data.name", "tiny", "--data.dir", str(tmp_path), "--run-dir", str(tmp_path / "run"))
    assert pretrained("tiny", *words, "--limit-steps", "4") == 0
    assert "note: tiny has no labels, so there is no evaluation fewshot\n" in capsys.readouterr().out
    assert all(np.isfinite(row["train/loss"]) for row in rows(tmp_path / "run"))


def test_latents_of_images_of_every_kind_are_encoded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = as_npz(tmp_path / "some", [(image, None) for image, _ in drawn(20)])
    words = ["--tokenizer", "fashion-kl", "--out", "latents", "--data.dir", str(root), "--batch-size", "8"]
    with pytest.raises(SystemExit) as end:
        exit_with(lambda words: encode_latents(words, EncodedData()), words)
    assert end.value.code == 0
    latents = LatentSource("latents")
    assert (latents.manifest.settings.name, len(latents), latents.spec.num_classes) == ("some", 18, 0)
    assert latents[3]["label"] == -1


@pytest.mark.parametrize("objective", [Classification(), LinearProbing()])
def test_an_objective_that_needs_labels_is_refused_without_them(objective):
    spec = DataSpec("some", 10, 5, 28, 28, 1, 0)
    with pytest.raises(BadInput, match="some has no labels to classify"):
        without_labels(dataclasses.replace(recipe(), objective=objective), spec)
