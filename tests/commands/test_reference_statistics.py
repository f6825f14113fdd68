"""`experiments/reference_statistics.py`, and the commands that use its files."""

import json

import numpy as np
from imagenet_trees import write_archives

from umd_eqx.commands.evaluate import evaluate
from umd_eqx.commands.prepare import prepare_data
from umd_eqx.commands.reference_statistics import make_statistics

EVALUATE = ("--samples", "16", "--steps", "2", "--batch-size", "16", "--no-baseline")


def images(folder, count: int, seed: int) -> str:
    """Grey images of 28 px with ten classes, of which a tenth are held out."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    arrays = {"images": rng.integers(0, 256, (count, 28, 28), np.uint8), "labels": np.arange(count) % 10}
    np.savez(folder / "some.npz", **arrays)
    return str(folder)


def test_results_are_the_same_with_a_file_and_another_is_refused(called, exported, here):
    run = exported()
    data, other = images(here / "some", 160, 0), images(here / "other", 160, 1)
    words = ("--data.dir", data, "--extractor", "fashion", "--out", "real.safetensors", "--json", "real.json")
    code, out, error = called(make_statistics, *words)
    assert (code, error) == (0, "")
    assert "real.safetensors: 16 images of some (test) at 28 px, fashion, SHA-256 " in out
    (told,) = json.loads((here / "real.json").read_text())
    assert (told["count"], told["reference_size"], told["resize"]) == (16, "squash", None)
    results = []
    for words in ((), ("--statistics", "real.safetensors")):
        code, _, error = called(evaluate, "--run", run, "--data-dir", data, "--json", "a.json", *EVALUATE, *words)
        assert (code, error) == (0, "")
        results.append(json.loads((here / "a.json").read_text())[0])
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[1]["reference"] == {"sha256": told["sha256"], "count": 16} == results[0]["reference"]
    code, _, error = called(evaluate, "--run", run, "--data-dir", other, "--statistics", "real.safetensors", *EVALUATE)
    assert code == 2
    assert error.startswith("error: --statistics: real.safetensors was made from images of some, and now it is other")


def test_images_of_another_resize_are_refused(called, here):
    write_archives(here / "in")
    found = {}
    for resize in ("box", "adm"):
        words = ("--src", "in", "--out", resize, "--name", "imagenet2012", "--size", "16", "--resize", resize)
        assert called(prepare_data, *words, "--workers", "1")[0] == 0
        words = ("--data.dir", resize, "--data.name", "imagenet2012", "--data.size", "16", "--extractor", "fashion")
        assert called(make_statistics, *words, "--out", f"{resize}.safetensors", "--json", "a.json")[0] == 0
        (found[resize],) = json.loads((here / "a.json").read_text())
    assert [found[resize]["resize"] for resize in found] == ["box", "adm"]
    assert found["box"]["sha256"] != found["adm"]["sha256"]


def test_what_cannot_be_is_told_in_one_line(called):
    out = ("--out", "real.safetensors")
    for words, said in (
        (("--out", "real.npz"), "--out: real.npz does not end in .safetensors"),
        (("--out", "nowhere/a.safetensors"), "--out: there is no folder nowhere"),
        ((*out, "--data.dir", "nowhere"), "--data.dir: there is no folder nowhere"),
        ((*out, "--data.split", "valid"), "--data.split: 'valid' is not a split"),
        ((*out, "--data.size", "0"), "--data.size: 0 is too small"),
        ((*out, "--extractor", "inception"), "--inception-weights: no weights were found"),
    ):
        code, _, error = called(make_statistics, *words)
        assert code == 2, words
        assert len(error.splitlines()) == 1
        assert error.startswith(f"error: {said}"), error
