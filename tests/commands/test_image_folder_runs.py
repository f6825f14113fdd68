"""Every command on a folder of image files, from pre-training to samples."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from faults.tiny import arrays, assert_equal_bit_for_bit, numbers, on_one_device, tiny
from faults.tiny import compilation_cache as compilation_cache
from PIL import Image

from umd_eqx.commands.cli import exit_with, main
from umd_eqx.commands.encode_latents import EncodedData, encode_latents
from umd_eqx.commands.evaluate import evaluate
from umd_eqx.commands.export import export_weights
from umd_eqx.commands.finetune import finetune
from umd_eqx.commands.sample import sample
from umd_eqx.core.sharding import make_mesh
from umd_eqx.data.source_configs import ImageFolder
from umd_eqx.eval import FewShot
from umd_eqx.latents.store import LatentSource
from umd_eqx.recipes.config import Config
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.sampling import sample as sample_images
from umd_eqx.sampling.parts import sample_in_parts

PROBE = FewShot(every=4, shots=2, seeds=1, test_images=12, knn=3)


@pytest.fixture(autouse=True)
def one_device_everywhere(monkeypatch):
    on_one_device(monkeypatch)
    for command in ("sample", "evaluate", "probe", "encode_latents"):
        monkeypatch.setattr(f"umd_eqx.commands.{command}.make_mesh", lambda *_: make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """20 grey images of each of three classes, of several sizes, and one broken file."""
    root = tmp_path_factory.mktemp("data") / "shades"
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "middle", "light")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(80 * label, 80 * label + 60, (30 + i % 3, 34), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    (root / "dark" / "broken.png").write_bytes(b"")
    return root


def recipe(folder: Path) -> Config:
    config = tiny(eval={"fewshot": PROBE})
    source = ImageFolder(str(folder), channels=1)
    data = dataclasses.replace(
        config.data, source=source, train_split="train[:70%]", test_split="train[70%:]", expected=None
    )
    return dataclasses.replace(config, data=data)


def pretrained(folder: Path, *words: str) -> None:
    """Runs the pre-training command with a recipe of one's own."""
    with pytest.raises(SystemExit) as end:
        main({"shades": lambda: recipe(folder)}, words)
    assert end.value.code in (0, None)


def called(command: Callable[[list[str]], int], *words: str) -> None:
    with pytest.raises(SystemExit) as end:
        exit_with(command, list(words))
    assert end.value.code == 0


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> Path:
    """A run of four steps that was interrupted after two."""
    run_dir = tmp_path_factory.mktemp("runs") / "shades"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        for steps in ("2", "4"):
            pretrained(folder, "--run-dir", str(run_dir), "--limit-steps", steps)
    return run_dir


def test_a_dry_run_counts_the_files(folder, capsys):
    pretrained(folder, "--dry-run")
    assert "shades, 43 to train on, 3 classes\n" in capsys.readouterr().out


def test_a_resumed_run_is_that_which_was_never_interrupted(folder, finished, tmp_path):
    pretrained(folder, "--run-dir", str(tmp_path / "whole"), "--limit-steps", "4")
    config = recipe(folder)
    assert_equal_bit_for_bit(arrays(finished, config), arrays(tmp_path / "whole", config))
    trained = [
        [{name: value for name, value in row.items() if name.startswith("train/")} for row in numbers(run_dir)]
        for run_dir in (finished, tmp_path / "whole")
    ]
    assert trained[0] == trained[1]
    data = json.loads((finished / "environment.json").read_text())["data"]
    assert (data["name"], data["num_train"], data["height"], data["num_classes"]) == ("shades", 43, None, 3)


def test_a_run_is_continued_where_the_folder_was_moved_and_not_on_another(folder, finished, tmp_path, capsys):
    for name in ("shades", "others"):
        shutil.copytree(folder, tmp_path / name)
    words = ("--run-dir", str(finished), "--limit-steps", "4")
    pretrained(folder, *words, "--data.dir", str(tmp_path / "others"))
    assert "is finished" in capsys.readouterr().out
    pretrained(tmp_path / "others", *words)  # under another title
    assert "is finished" in capsys.readouterr().out
    image = tmp_path / "shades" / "dark" / "07.png"
    image.write_bytes((folder / "dark" / "08.png").read_bytes())
    for title, field, said in (
        ("shades", "--data.dir", "was started with other images"),
        ("others", "--data.title", "was started with shades, and now it is others"),
    ):
        source = ["--data.dir", str(tmp_path / "shades"), "--data.title", title]
        with pytest.raises(SystemExit) as end:
            main({"shades": lambda: recipe(folder)}, [*words, *source])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {field}: ")
        assert said in error


def test_its_representation_is_probed(finished, tmp_path, capsys):
    called(evaluate, "--run", str(finished), "--benchmark", "probe", "--json", str(tmp_path / "probe.json"))
    (result,) = json.loads((tmp_path / "probe.json").read_text())
    assert (result["data"]["name"], result["data"]["train_images"], result["data"]["test_images"]) == (
        "shades",
        43,
        18,
    )
    last = numbers(finished)[-1]
    assert result["metrics"]["class_tokens/top1"] == last["eval/fewshot/class_tokens/top1"]
    with pytest.raises(SystemExit):
        exit_with(evaluate, ["--run", str(finished), "--benchmark", "probe", "--data-dir", str(tmp_path / "nothing")])
    assert f"error: --data.dir: there is no folder {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_an_interrupted_measurement_goes_on_where_it_was(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("umd_eqx.commands.evaluate.PART", 12)
    sampled = []

    def in_small_parts(*given, **options):
        return sample_in_parts(*given, **options, part=12)

    def counted(*given, first, **options):
        if len(sampled) == 2:
            sampled.append(-1)
            raise KeyboardInterrupt
        sampled.append(first)
        return sample_images(*given, first=first, **options)

    monkeypatch.setattr("umd_eqx.commands.evaluate.sample_in_parts", in_small_parts)
    monkeypatch.setattr("umd_eqx.sampling.parts.sample", counted)
    words = ["--run", str(finished), "--steps", "2", "--batch-size", "12", "--samples", "36", "--no-baseline"]
    with pytest.raises(SystemExit) as end:
        exit_with(evaluate, words)
    assert end.value.code == 130
    (folder,) = (finished / "eval").glob("unfinished-*")
    assert len([*folder.iterdir()]) == 2
    called(evaluate, *words, "--json", str(tmp_path / "measured.json"))
    assert sampled == [0, 12, -1, 24]
    assert not folder.exists()
    assert json.loads((tmp_path / "measured.json").read_text())[0]["protocol"]["samples"] == 36


def test_it_is_sampled_measured_and_exported(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ("--run", str(finished), "--steps", "2", "--batch-size", "12")
    called(sample, *run, "--num", "3", "--out", "grid.png")
    assert Path("grid.png").exists()
    called(evaluate, *run, "--samples", "12", "--json", "measured.json")
    (result,) = json.loads(Path("measured.json").read_text())
    assert (result["data"], result["reference"]["count"]) == ("shades", 18)
    called(export_weights, "--run", str(finished), "--out", "shades.safetensors")
    source = from_pretrained("shades.safetensors")
    assert source.data.source == ImageFolder(None, "shades", 1)
    assert source.spec.num_train == 43


@pytest.mark.slow
def test_it_is_fine_tuned_with_its_classes(finished, tmp_path):
    quick = ("--eval.fewshot.shots", "2", "--eval.fewshot.seeds", "1", "--eval.fewshot.test-images", "6")
    quick += ("--eval.denoising.images", "4", "--eval.generation.samples", "12", "--eval.generation.sampler.steps", "2")
    words = ("--from", str(finished), "--limit-steps", "2", "--log.every", "1", "--data.batch-size", "16")
    called(finetune, *words, "--data.eval-batch-size", "16", "--run-dir", str(tmp_path / "tuned"), *quick)
    tuned = from_pretrained(tmp_path / "tuned")
    assert tuned.model.num_classes == 3
    assert tuned.data.source == from_pretrained(finished).data.source


def test_its_latents_are_encoded(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = EncodedData(ImageFolder(str(folder), channels=1))
    words = ["--tokenizer", "fashion-kl", "--out", "latents", "--data.split", "train[:10]", "--batch-size", "8"]
    called(lambda words: encode_latents(words, data), *words)
    latents = LatentSource("latents")
    assert (latents.manifest.settings.name, len(latents), latents.spec.num_classes) == ("shades", 10, 3)
