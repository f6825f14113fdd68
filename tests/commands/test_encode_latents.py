"""`experiments/encode_latents.py`: what it leaves and says, and what it refuses in one line."""

import errno
import json
import os
import platform
import signal
from pathlib import Path

import jax
import pytest

from umd_eqx.commands.encode_latents import encode_latents
from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.latents import encoding
from umd_eqx.latents.store import LatentSource
from umd_eqx.runs.lock import locked

KL = ("--tokenizer", "fashion-kl", "--out", "latents")
QUICK = (*KL, "--limit", "12", "--per-shard", "5", "--batch-size", "8")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr("umd_eqx.commands.encode_latents.make_mesh", lambda *_: make_mesh(jax.devices()[:1]))


def test_it_leaves_latents_and_figures_and_says_so_when_it_is_called_again(called, here):
    views = ("--views", "2", "--data.area-min", "80", "--half")
    code, out, error = called(encode_latents, *QUICK, *views, "--json", "a.json")
    assert (code, error) == (0, "")
    assert "fashion-kl, KL-4, 4 x 4 pixels to 4 numbers; 12 images of fashion_mnist, 2 views each: latents" in out
    assert out.splitlines()[-1].startswith("12 images, 2 views each, mean ")
    source = LatentSource("latents")
    assert source[11]["image"].shape == (2, 7, 7, 8)
    (figures,) = json.loads((here / "a.json").read_text())
    assert (figures["images"], figures["views"], figures["encoded"]) == (12, 2, 12)
    assert figures["bytes"] == sum(file.stat().st_size for file in (here / "latents").glob("*.array_record"))
    assert (figures["mean"], figures["std"]) == (source.manifest.mean, source.manifest.std)

    code, out, error = called(encode_latents, *QUICK, *views, "--json", "b.json")
    assert (code, error) == (0, "")
    assert "latents is complete: 12 images, 2 views each" in out
    (again,) = json.loads((here / "b.json").read_text())
    assert again == figures | {"encoded": 0, "seconds": 0.0, "views_per_s": None}

    code, _, error = called(encode_latents, *QUICK, *views, "--seed", "1")
    problem = "latents was begun with seed 0, and now it is 1"
    assert code == 2
    assert error == f"error: --seed: {problem}. Use the old value to resume, or another --out\n"


def test_views_that_are_all_alike_are_told_of(called):
    code, out, _ = called(encode_latents, *QUICK, "--views", "2", "--mode-only")
    assert code == 0
    assert "note: without augmentation all views of an image are identical" in out
    assert LatentSource("latents")[0]["image"].shape == (2, 7, 7, 4)


def test_ctrl_c_ends_it_after_the_batch_and_the_same_command_goes_on(called, monkeypatch):
    real, calls = encoding._moments, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(encoding, "_moments", interrupted)
    code, out, error = called(encode_latents, *QUICK)
    assert (code, error) == (75, "")
    assert "stopped by SIGINT: complete shards are kept. The same command resumes it" in out
    code, out, error = called(encode_latents, *QUICK)
    assert (code, error) == (0, "")
    assert "5 images are already encoded" in out


def test_a_full_disk_is_one_line_and_what_is_complete_is_kept(called, monkeypatch):
    real = encoding.array_record_module.ArrayRecordWriter

    class Full:
        """A writer that has no room for the second shard; array_record says so in a RuntimeError."""

        def __init__(self, path, options):
            self._writer, self._full = real(path, options), "00001-of" in path

        def write(self, record):
            self._writer.write(record)

        def close(self):
            self._writer.close()
            if self._full:
                raise RuntimeError(f"UNAVAILABLE: {os.strerror(errno.ENOSPC)}")

    with monkeypatch.context() as patch:
        patch.setattr(encoding.array_record_module, "ArrayRecordWriter", Full)
        code, _, error = called(encode_latents, *QUICK)
    assert code == 2
    assert error.startswith("error: --out: the disk of ")
    assert error.endswith("run the same command again: it resumes at the first missing shard\n")
    code, out, _ = called(encode_latents, *QUICK)
    assert code == 0
    assert "5 images are already encoded" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*KL, "--views", "0"), "--views: 0 is too small"),
        ((*KL, "--limit", "0"), "--limit: 0 is too small"),
        ((*KL, "--batch-size", "0"), "--batch-size: 0 is too small"),
        ((*KL, "--seed", "-1"), "--seed: -1 is outside"),
        ((*KL, "--data.size", "30"), "--data.size: 30 is not a multiple of the tokenizer's downsampling factor, 4"),
        ((*KL, "--data.area-min", "0"), "--data.area-min: "),
        ((*KL, "--data.split", "training"), "--data.split: 'training' is not a split"),
        ((*KL, "--data.name", "imagenet"), "--data.dir: 'imagenet' is not included in this package"),
        ((*KL, "--json", "nowhere/a.json"), "--json: there is no folder nowhere"),
        (("--tokenizer", "fashion-lk", "--out", "latents"), "--tokenizer: there is no fashion-lk on this machine"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(called, here, monkeypatch, words, said):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    code, out, error = called(encode_latents, *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert error.startswith(f"error: {said}")
    assert not list(here.iterdir())


@pytest.mark.parametrize("out", ["file", "file/below", "thesis"])
def test_places_that_are_taken_are_left_alone(called, here, out):
    (here / "file").write_text("mine")
    (here / "thesis").mkdir()
    (here / "thesis" / "one.tex").write_text("mine")
    code, _, error = called(encode_latents, "--tokenizer", "fashion-kl", "--out", out)
    assert (code, len(error.splitlines())) == (2, 1)
    assert error.startswith("error: --out: ")
    assert (here / "file").read_text() == (here / "thesis" / "one.tex").read_text() == "mine"


def test_a_folder_that_another_process_is_at_is_refused(called):
    with locked(Path("latents")):
        code, _, error = called(encode_latents, *QUICK)
    who = f"process {os.getpid()} on {platform.node()}"
    problem = f"another process is running in latents ({who}). Wait for it, stop it, or choose another directory"
    assert (code, error) == (2, f"error: --out: {problem}\n")


def test_an_error_of_another_kind_keeps_its_flag(called, monkeypatch):
    def refuse(*_, **__):
        raise BadInput("data.max_broken", "7 broken images", "Mend the data.")

    monkeypatch.setattr("umd_eqx.commands.encode_latents.encode", refuse)
    code, _, error = called(encode_latents, *QUICK)
    assert (code, error) == (2, "error: --data.max-broken: 7 broken images. Mend the data.\n")
