"""Runs of networks of latents, from the first step to samples."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from faults.tiny import arrays, assert_equal_bit_for_bit, numbers, on_one_device, rows, tiny
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.encode_latents import encode_latents
from umd_eqx.commands.evaluate import evaluate
from umd_eqx.commands.export import export_weights
from umd_eqx.commands.finetune import finetune
from umd_eqx.commands.sample import sample
from umd_eqx.commands.train_tokenizer import train_tokenizer
from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import LinearTable
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import LatentSpec
from umd_eqx.eval import Reconstruction
from umd_eqx.models.tokenizers.base import with_statistics
from umd_eqx.models.tokenizers.configs import KLTokenizer
from umd_eqx.models.tokenizers.files import is_written
from umd_eqx.recipes.build import build
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.tokenizers import kl
from umd_eqx.runs.finetuning import follow, resolve_fitting, start_from
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.runs.resolved import resolve
from umd_eqx.runs.run import run
from umd_eqx.runs.tokenizers import load_tokenizer, save_tokenizer
from umd_eqx.training import loop
from umd_eqx.training.step import train_step

SMALL = KLTokenizer(latent_channels=2, widths=(4, 8, 8), groups=2)
TRAIN = (
    *("kl", "--model.widths", "4", "8", "8", "--model.groups", "2", "--model.latent-channels", "2"),
    *("--data.batch-size", "8", "--data.eval-batch-size", "32", "--optim.steps", "3", "--log.every", "1"),
    *("--eval.tokenizer.images", "32", "--eval.tokenizer.pictures", "2"),
)


@pytest.fixture(autouse=True)
def one_device_and_few_images(monkeypatch):
    on_one_device(monkeypatch)
    for room in ("sample", "evaluate"):
        monkeypatch.setattr(f"umd_eqx.commands.{room}.make_mesh", lambda *_: make_mesh(jax.devices()[:1]))
    monkeypatch.setattr("umd_eqx.models.tokenizers.files.STATISTICS_IMAGES", 64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """A small tokenizer, not trained."""
    folder = tmp_path_factory.mktemp("tokenizer")
    fresh = SMALL.build(28, 1, 10, key=jax.random.key(0))
    save_tokenizer(with_statistics(fresh, 0.0, 2.0), SMALL, folder / "tokenizer.safetensors", {})
    return str(folder)


def small(tokenizer: str, **fields):
    """The tiny run of `faults.tiny` on 7 x 7 latents."""
    shown = {"reconstruction": Reconstruction(every=4, images=8, pictures=2)}
    usual = {"model__variant": "mu/1", "tokenizer": tokenizer, "eval": shown, "path": LinearTable()}
    return tiny(**(usual | fields))


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """Six steps without an interruption, images encoded on the way."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(small(tokenizer), run_dir=directory, preset="latent-umd", limit_steps=6)
    return directory


def called(capsys, command, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        exit_with(command, list(map(str, words)))
    out, error = capsys.readouterr()
    assert "Traceback" not in out + error
    return end.value.code, out, error


def test_a_run_of_latents_in_pieces_is_the_run_in_one(tokenizer, whole, tmp_path):
    config = small(tokenizer)
    for steps in (2, 3, 6):
        run(config, run_dir=tmp_path / "run", preset="latent-umd", limit_steps=steps)
    assert [row["train/loss"] for row in rows(tmp_path / "run")] == [row["train/loss"] for row in rows(whole)]
    assert_equal_bit_for_bit(arrays(tmp_path / "run", resolve(config).config), arrays(whole, resolve(config).config))
    measured = rows(whole)[-1]
    assert measured["eval/reconstruction/error"] > 0
    assert measured["eval/reconstruction/latent_error"] > 0


def test_a_run_goes_on_only_with_the_tokenizer_that_it_began_with(tokenizer, whole, tmp_path):
    moved = tmp_path / "moved"
    loaded = load_tokenizer(tokenizer)
    moved.mkdir()
    save_tokenizer(loaded.tokenizer, SMALL, moved / "tokenizer.safetensors", {})
    run(small(str(moved)), run_dir=whole, preset="latent-umd", limit_steps=6)  # the same, elsewhere
    save_tokenizer(with_statistics(loaded.tokenizer, 0.0, 1.0), SMALL, moved / "tokenizer.safetensors", {})
    with pytest.raises(BadInput, match=r"tokenizer: the run in .* was started with another tokenizer or other"):
        run(small(str(moved)), run_dir=whole, preset="latent-umd", limit_steps=6)


def test_stored_latents_are_trained_on_by_the_same_data_path(tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--tokenizer", tokenizer, "--out", "latents", "--limit", "64", "--per-shard", "20")
    assert called(capsys, encode_latents, *words)[0] == 0
    config = small(tokenizer, data__latents="latents", data__train_split="train", eval={})
    # Latents of another part of the data, or of another kind, are refused before anything is written.
    with pytest.raises(BadInput, match="encoded with other images"):
        run(dataclasses.replace(config, data=dataclasses.replace(config.data, train_split="train[:64]")), run_dir="a")
    with pytest.raises(BadInput, match="encoded with another augmentation"):
        run(dataclasses.replace(config, data=dataclasses.replace(config.data, flip=True)), run_dir="a")
    assert not (tmp_path / "a").exists()
    run(config, run_dir="run", preset="latent-umd", limit_steps=3)
    run(config, run_dir="pieces", preset="latent-umd", limit_steps=1)
    run(config, run_dir="pieces", preset="latent-umd", limit_steps=3)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "pieces")
    # ... and such a run is not one with latents that are encoded on the way.
    with pytest.raises(BadInput, match="was started with another tokenizer or other latents"):
        run(small(tokenizer, eval={}), run_dir="run", preset="latent-umd", limit_steps=3)


def test_fine_tuning_follows_the_run_with_its_tokenizer(tokenizer, whole, capsys):
    # No preset is named: the recipe follows the run, its network, path and tokenizer with it.
    name, config = follow(FINETUNE, None, *start_from(whole, "ema"))
    source = from_pretrained(whole)
    assert (name, config.tokenizer, config.path) == ("latent-umd-ft", tokenizer, LinearTable())
    resolve_fitting(config, source)
    model = build(resolve(config).config, config.data.describe()).abstract_state().model
    assert (model.image_shape, model.num_classes) == ((7, 7, 2), 10)
    other = dataclasses.replace(config, tokenizer="fashion-kl")
    with pytest.raises(
        BadInput, match=f"from: it was trained on the latents of {tokenizer}, but the recipe has fashion-"
    ):
        resolve_fitting(other, source)
    code, _, error = called(capsys, finetune, "latent-umd-ft", "--from", whole)
    said = f"error: --from: {whole} holds a different network: --model.v"
    assert (code, error.splitlines()[0][:60]) == (2, said[:60])


def test_samples_of_latents_are_images_and_an_export_asks_for_its_tokenizer(
    tokenizer, whole, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    quick = ("--steps", "2", "--batch-size", "8")
    source = from_pretrained(whole)
    assert source.latents is not None
    assert source.model.image_shape == (7, 7, 2)
    # --film and --no-floor are the former names of --trajectory and --no-baseline.
    grid = ("--num", "4", "--out", "grid.png", "--film", "film.png")
    assert called(capsys, sample, "--run", whole, *grid, *quick)[0] == 0
    measured = ("--samples", "10", "--no-floor", "--json", "e.json")
    assert called(capsys, evaluate, "--run", whole, *measured, *quick)[0] == 0
    result = json.loads((tmp_path / "e.json").read_text())[0]
    assert result["sampler"]["clip"] is False
    assert np.isfinite(result["metrics"]["fd_fashion"])

    # An export says by which tokenizer; where that has gone, it is asked for, and another is not taken.
    assert called(capsys, export_weights, "--run", whole, "--out", "out.safetensors")[0] == 0
    assert from_pretrained("out.safetensors").digest == source.digest
    card = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "out.json").write_text(json.dumps(card | {"tokenizer": "gone"}))
    code, _, error = called(capsys, sample, "--run", "out.safetensors", "--num", "1", *quick)
    assert (code, error[:46]) == (2, "error: --tokenizer: there is no gone on this m")
    assert from_pretrained("out.safetensors", tokenizer=tokenizer).digest == source.digest
    code, _, error = called(capsys, sample, "--run", "out.safetensors", "--tokenizer", "fashion-kl", *quick)
    assert (code, "is not the tokenizer that the network was trained with" in error) == (2, True)
    for wrong in ({"latent": None}, {"tokenizer": 3}, {"latent": {"type": "LatentSpec", "factor": 0, "channels": 2}}):
        (tmp_path / "out.json").write_text(json.dumps(card | wrong))
        code, _, error = called(capsys, sample, "--run", "out.safetensors", *quick)
        assert (code, "out.json cannot be read" in error) == (2, True)


def test_a_tokenizer_is_trained_and_used(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = called(capsys, train_tokenizer, *TRAIN, "--run-dir", "kl", "--json", "kl.json")
    assert (code, error) == (0, "")
    assert "tokenizer: kl/tokenizer.safetensors" in out
    figures = json.loads((tmp_path / "kl.json").read_text())[0]
    assert figures["eval/tokenizer/error"] > 0
    loaded = load_tokenizer("kl")
    assert loaded.config == KLTokenizer(latent_channels=2, widths=(4, 8, 8), groups=2)
    assert loaded.tokenizer.scale == pytest.approx(1 / loaded.facts["latent_std"])
    assert (tmp_path / "kl/report.html").exists()
    # Its training is a run like any other: the same command says that it is finished.
    assert "kl is finished" in called(capsys, train_tokenizer, *TRAIN, "--run-dir", "kl")[1]
    # A run of a tokenizer is no network, and is told from one.
    code, _, error = called(capsys, sample, "--run", "kl")
    said = "error: --run: kl holds KL-2, which is not a network that predicts images. Pass it to --tokenizer, and a run"
    assert (code, error.startswith(said)) == (2, True)
    assert called(capsys, export_weights, "--run", "kl", "--out", "out.safetensors", "--half")[0] == 0
    assert load_tokenizer("out.safetensors").facts["step"] == 3


def test_a_run_of_a_tokenizer_from_python_ends_in_writing_it(tmp_path, monkeypatch, capsys):
    config = kl()
    config = dataclasses.replace(
        config,
        model=SMALL,
        data=dataclasses.replace(config.data, batch_size=8, eval_batch_size=32),
        optim=dataclasses.replace(config.optim, steps=3),
        eval={},
    )
    directory = tmp_path / "kl"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", lambda *given: signal.raise_signal(signal.SIGTERM) or train_step(*given))
        assert run(config, run_dir=directory).exit_code == 75
    assert not (directory / "tokenizer.safetensors").exists()  # a run that is stopped has none yet
    run(config, run_dir=directory)
    whole = load_tokenizer(str(directory))
    assert whole.facts["step"] == 3
    assert "tokenizer: " in capsys.readouterr().out
    # Finished already: it is left as it is, and written where it is missing.
    written = (directory / "tokenizer.safetensors").stat().st_mtime_ns
    run(config, run_dir=directory)
    assert (directory / "tokenizer.safetensors").stat().st_mtime_ns == written
    assert is_written(directory, 3)
    assert not is_written(directory, 4)
    (directory / "tokenizer.json").unlink()
    assert not is_written(directory, 3)
    run(config, run_dir=directory)
    assert load_tokenizer(str(directory)).digest == whole.digest


def test_runs_and_exports_with_the_former_fingerprint_of_their_tokenizer_are_read(tokenizer, whole, tmp_path, capsys):
    former = load_tokenizer(tokenizer).digest[:16]
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    kept = json.loads((directory / "config.json").read_text())
    assert len(kept["config"]["latent"]["digest"]) == 32
    kept["config"]["latent"]["digest"] = former
    (directory / "config.json").write_text(json.dumps(kept))
    source = from_pretrained(directory)
    assert source.digest == from_pretrained(whole).digest
    run(small(tokenizer), run_dir=directory, preset="latent-umd", limit_steps=6)  # claimed as its own
    assert "is finished" in capsys.readouterr().out
    resolve_fitting(follow(FINETUNE, None, *start_from(directory, "ema"))[1], source)
    kept["config"]["latent"]["digest"] = former[::-1]
    (directory / "config.json").write_text(json.dumps(kept))
    with pytest.raises(BadInput, match="is not the tokenizer that the network was trained with"):
        from_pretrained(directory)


@pytest.mark.slow  # half a minute, and every part of it is tested alone
def test_a_tokenizer_with_codes_is_trained_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ("--model.widths", "4", "8", "8", "--model.groups", "2")
    words = ("fsq", *sizes, *TRAIN[TRAIN.index("--data.batch-size") :])
    code, _, error = called(capsys, train_tokenizer, *words, "--run-dir", "fsq", "--json", "f.json")
    assert (code, error) == (0, "")
    figures = json.loads((tmp_path / "f.json").read_text())[0]
    assert 0 < figures["eval/tokenizer/codes_used"] <= 1
    assert 1 <= figures["eval/tokenizer/perplexity"] <= 1000


def test_the_latent_of_a_run_is_its_own_at_every_step(tokenizer):
    config = resolve(small(tokenizer)).config
    assert config.latent == LatentSpec(4, 2, load_tokenizer(tokenizer).digest)
    assert config.image_shape(config.data.describe()) == (7, 7, 2)
