"""`experiments/sample.py`: the picture, and what is refused."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from umd_eqx.commands.sample import sample

QUICK = ("--steps", "2", "--batch-size", "8")


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as picture:
        return np.asarray(picture, int)


def test_a_picture_trajectories_and_the_figures(called, exported, here):
    words = ("--run", exported(), "--num", "20", "--out", "grid.png", "--trajectory", "steps.png", "--json", "f.json")
    code, out, error = called(sample, *words, *QUICK)
    assert (code, error) == (0, "")
    assert "umd-ft, mu/7, ema weights of step 7, 10 classes; dpmpp, 2 steps, guidance 2" in out
    assert "20 images in" in out
    # Each class a column, two rows of them, enlarged until it is 500 pixels wide.
    width, height = 10 * 30 - 2, 2 * 30 - 2
    assert pixels("grid.png").shape == (2 * height, 2 * width, 3)
    assert pixels("steps.png").shape[1] > 28
    (figures,) = json.loads((here / "f.json").read_text())
    assert (figures["images"], figures["run"]) == (20, None)  # an export has no results of a run


def test_the_same_seed_gives_the_same_picture_and_another_another(called, exported, here):
    run = exported()
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert (
            called(sample, "--run", run, "--label", "7", "--num", "4", "--seed", seed, "--out", f"{name}.png", *QUICK)[
                0
            ]
            == 0
        )
    pictures = [(here / f"{name}.png").read_bytes() for name in "abc"]
    assert pictures[0] == pictures[1] != pictures[2]


def test_the_batch_size_does_not_matter(called, exported):
    run = exported()
    for name, batch in (("a", "3"), ("b", "7")):
        words = ("--run", run, "--num", "7", "--steps", "2", "--batch-size", batch, "--out", f"{name}.png")
        assert called(sample, *words)[0] == 0
    assert np.abs(pixels("a.png") - pixels("b.png")).max() <= 1


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp", "tsit5", "sde"])
def test_every_sampler_goes_along_the_path_of_the_run(called, exported, sampler):
    code, _, error = called(sample, "--run", exported(), "--num", "2", "--sampler", sampler, *QUICK)
    assert (code, error) == (0, "")


def test_sampling_from_what_never_saw_noise_is_warned_of(called, exported):
    code, out, error = called(sample, "--run", exported(labels=False, denoises=False), "--num", "2", *QUICK)
    assert (code, "2 images in" in out) == (0, True)
    problem = "mae was not trained on noised images, so its samples look like noise"
    assert error == f"warning: {problem}\n"


def test_a_network_without_labels_is_sampled_without_guidance(called, exported):
    code, out, _ = called(sample, "--run", exported(labels=False), "--num", "4", *QUICK)
    assert code == 0
    assert "no labels; dpmpp, 2 steps, guidance 1" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--label", "10"), "--label: 10 is not a class of fashion_mnist. Use 0 .. 9"),
        (("--label", "-1"), "--label: -1 is not a class of fashion_mnist. Use 0 .. 9"),
        (("--steps", "0"), "--steps: 0"),
        (("--steps", "-3"), "--steps: -3"),
        (("--num", "0"), "--num: 0 is not a valid number of images"),
        (("--batch-size", "0"), "--batch-size: 0"),
        (("--cfg-scale", "-1"), "--cfg-scale: -1.0 is not a valid scale"),
        (("--cfg-scale", "nan"), "--cfg-scale: nan is not a valid scale"),
        (("--sampler", "ddim", "--eta", "-1"), "--eta: -1"),
        (("--eta", "0.5"), "--eta: dpmpp has no such setting. Omit it, or choose a type that has it: --sampler ddim"),
        (("--sampler", "hoyn"), "--sampler: there is no 'hoyn'. Choose one of: ddim, euler"),
        (("--grid", "edn"), "--grid: there is no 'edn'. Did you mean edm?"),
        (("--seed", "-1"), "--seed: -1 is outside"),
        (("--out", "nowhere/grid.png"), "--out: there is no folder nowhere"),
        (("--weak", "nowhere"), "--weak: there is no nowhere"),
        (("--cfg-interval", "0.9", "0.1"), "--cfg-interval"),
        (("--cfg-scale", "1", "--cfg-interval", "0.1", "0.9"), "--cfg-scale: 1 disables guidance"),
        (("--out", "."), "--out: . is a folder"),
        (("--sampler", "tsit5", "--rtol", "0"), "--rtol: 0.0 is outside"),
        (("--run", "nowhere"), "--run: there is no nowhere"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_written(called, exported, here, words, said):
    run = () if "--run" in words else ("--run", exported())
    code, _, error = called(sample, *run, *words)
    assert code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert said in error
    assert not list(here.iterdir())


def test_labels_and_guidance_need_a_network_that_knows_labels(called, exported):
    run = exported(labels=False)
    assert "--label: the network is not class-conditional" in called(sample, "--run", run, "--label", "7")[2]
    assert "--cfg-scale: the network is not class-conditional" in called(sample, "--run", run, "--cfg-scale", "2")[2]


def test_a_typo_is_met_with_the_flag_that_was_meant(called):
    code, _, error = called(sample, "--sampeler", "heun")
    assert code == 2
    assert "--sampler" in error
    assert len(error.splitlines()) <= 30


def test_a_full_disk_is_told_with_the_flag_that_named_the_picture(called, exported, here, monkeypatch):
    def full(name, image):
        raise OSError(errno.ENOSPC, "no room", name)

    monkeypatch.setattr("umd_eqx.commands.sample.save_png", full)
    code, _, error = called(sample, "--run", exported(), "--num", "4", "--out", "grid.png", *QUICK)
    assert (code, error) == (
        2,
        "error: --out: the disk of grid.png is full. Free some space and run the same command again\n",
    )
