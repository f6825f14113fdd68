"""`experiments/prepare.py`: what it leaves and says, and what it refuses in one line."""

import json
import os
import signal
from collections.abc import Callable

import pytest
from imagenet_trees import CLASSES, CMYK, TRUNCATED, training_images, write_archives

from umd_eqx.commands.prepare import prepare_data
from umd_eqx.data.prepared import resize_of
from umd_eqx.data.preparing import shards
from umd_eqx.data.source_configs import TFDS
from umd_eqx.runs.lock import locked

WORDS = ("--src", "in", "--out", "data", "--name", "imagenet2012", "--workers", "1", "--per-shard", "5")


@pytest.fixture
def tree(called, here) -> Callable[..., tuple[int, str, str]]:
    """`called`, in a folder with the archives in `in`."""
    write_archives(here / "in")
    return called


def test_it_leaves_data_and_figures_and_says_so_when_it_is_called_again(tree, here):
    code, out, error = tree(prepare_data, *WORDS, "--json", "a.json")
    assert (code, error) == (0, "")
    assert "25 images (18 in train, 7 in validation), 3 classes" in out
    assert "note: labels of the validation images: imagenet_2012_validation_synset_labels.txt" in out
    departures = "it has 3 classes instead of 1,000; its split train has 18 images instead of 1,281,167"
    assert f"warning: this is not the whole of imagenet2012: {departures}; " in out
    assert f"left out: {TRUNCATED}: image file is truncated" in out
    assert f"converted: 2 images of other formats, such as {CMYK} (CMYK JPEG)" in out
    assert "data/imagenet2012/5.1.0 is complete" in out
    assert out.endswith("train on it with --data.name imagenet2012 --data.dir data\n")
    assert "image 25/25" in out
    (figures,) = json.loads((here / "a.json").read_text())
    assert figures["images"] == {"train": 17, "validation": 7}
    assert (figures["broken"], figures["converted"], figures["files"], figures["kept"]) == (1, 2, 6, 0)
    assert figures["images_per_s"] == pytest.approx(24 / figures["seconds"])
    assert len(figures["departures"]) == 3

    code, out, error = tree(prepare_data, *WORDS, "--json", "b.json")
    assert (code, error) == (0, "")
    assert "data/imagenet2012/5.1.0 was complete, and nothing was changed: 6 files, of which 6 were there" in out
    (again,) = json.loads((here / "b.json").read_text())
    timed = ("seconds", "images_per_s", "kept")
    assert [again[name] for name in again if name not in timed] == [
        figures[name] for name in figures if name not in timed
    ]
    assert (again["kept"], again["images_per_s"]) == (6, None)

    code, _, error = tree(prepare_data, *WORDS, "--size", "16")
    assert code == 2
    told = "data/imagenet2012/5.1.0 has another size (none, now 16)"
    assert error == f"error: --size: {told}. Give the same as before, or another --out\n"
    code, _, error = tree(prepare_data, *WORDS, "--resize", "adm")
    assert (code, error) == (2, "error: --resize: images are downsampled only to a given size. Give --size, too\n")


def test_a_signal_ends_it_and_the_same_command_goes_on(tree, monkeypatch):
    write, count = shards._write, 0

    def signalled(path, records):
        nonlocal count
        write(path, records)
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(shards, "_write", signalled)
    code, out, error = tree(prepare_data, *WORDS)
    assert (code, error) == (75, "")
    assert "warning: SIGINT: stopping; unfinished files are written again by the next call" in out
    assert out.endswith("stopped by SIGINT: complete files are kept. The same command resumes it\n")
    code, out, error = tree(prepare_data, *WORDS)
    assert (code, error) == (0, "")
    assert "6 files, of which 2 were there" in out


def test_folders_of_other_images_are_prepared_too(called, here):
    for name in CLASSES:
        (here / "my pets" / name).mkdir(parents=True)
        for file, content in training_images()[name].items():
            if file not in (TRUNCATED, CMYK):
                (here / "my pets" / name / file).write_bytes(content)
    words = ("--src", "my pets", "--out", "data", "--name", "pets", "--size", "8", "--resize", "adm", "--workers", "1")
    code, out, error = called(prepare_data, *words)
    assert (code, error) == (0, "")
    assert "warning" not in out
    source = TFDS("pets", "data")
    spec = source.describe("train", "test")
    assert (spec.num_train + spec.num_test, spec.num_classes, spec.height) == (16, 3, 8)
    assert resize_of(source.open("train")) == "adm"


def test_what_cannot_be_is_told_in_one_line(tree, here):
    (here / "file").touch()
    (here / "prepared").mkdir()
    assert tree(prepare_data, *WORDS[:2], "--out", "prepared", *WORDS[4:])[0] == 0
    (here / "labels").write_text("n01440764\n")
    for words, said in (
        (("--src", "nowhere"), "--src: there is no folder or file nowhere"),
        (("--src", "prepared"), "--src: prepared holds a prepared data set. Train on it with --data.dir, as it is"),
        (("--src", "file"), "--src: file contains no images"),
        (("--out", "file"), "--out: file is not a folder"),
        (("--out", "file/x"), "--out: file/x/imagenet2012/5.1.0 cannot be written to (Not a directory)"),
        (("--name", "../x"), "--name: '../x' is not a valid name"),
        (("--size", "0"), "--size: 0 is too small"),
        (("--workers", "0"), "--workers: 0 is too small"),
        (("--max-broken", "-1"), "--max-broken: -1 is negative"),
        (("--max-broken", "0"), "--max-broken: 1 broken images, more than 0, in train"),
        (("--validation-labels", "nowhere"), "--validation-labels: there is no file nowhere"),
        (("--validation-labels", "labels"), "--src: labels has 1 labels, but there are 7 validation images"),
        (("--json", "nowhere/x.json"), "--json: there is no folder nowhere"),
    ):
        code, _, error = tree(prepare_data, *WORDS, *words)
        assert code == 2, words
        assert len(error.splitlines()) == 1, error
        assert error.startswith(f"error: {said}"), error
    with locked(here / "data" / "imagenet2012" / "5.1.0"):
        code, _, error = tree(prepare_data, *WORDS)
    assert code == 2
    assert "another process is running in data/imagenet2012/5.1.0" in error
