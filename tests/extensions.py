"""The files of docs/extend.md, and what makes them small enough to be run as tests."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

DOCUMENT = (Path(__file__).parent.parent / "docs" / "extend.md").read_text()
FILES = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", DOCUMENT, re.S))
COMMANDS = {
    name: [line.split()[2:] for line in re.findall(rf"^python {name} .*$", DOCUMENT, re.M) if "--run" in line]
    for name in FILES
}
"""The commands of each file: training, then what is done with the run."""

SMALL = ("--data.batch-size", "8", "--data.eval-batch-size", "8", "--log.every", "1", "--checkpoint.every", "1")
SHIPPED = ("--data.train-split", "train[:256]", "--data.test-split", "test[:64]")
VIT = ("--model.variant", "mu/7")
PROBE = ("shots", "2", "seeds", "1", "test-images", "16", "knn", "3", "pool", "500")
PROBED = tuple(f"--eval.fewshot.{word}" if i % 2 == 0 else word for i, word in enumerate(PROBE))
HIDDEN = ("--eval.reconstruction.images", "8", "--eval.reconstruction.pictures", "1")
NOISED = ("--eval.denoising.images", "8", "--eval.denoising.pictures", "1", "--eval.denoising.levels", "0.5")
NOISED = (*NOISED, "--eval.denoising.shown-levels", "0.5")
SAMPLED = (
    "--eval.generation.samples",
    "10",
    "--eval.generation.columns",
    "1",
    "--eval.generation.frames",
    "2",
    "--eval.generation.cfg-scales",
    "2",
)
USES = {
    "sample": ("--num", "2", "--batch-size", "2", "--steps", "2"),
    "evaluate": (*(f"--{word}" if i % 2 == 0 else word for i, word in enumerate(PROBE)), "--batch-size", "16"),
}
"""What makes a command of the document small enough for a test."""


class Case(NamedTuple):
    """The sizes of a test, what the last row of a run holds, the types that loading needs, a flag of the class."""

    small: tuple[str, ...]
    measured: str
    types: tuple[str, ...]
    flag: str


CASES = {
    "my_objective.py": Case((*SHIPPED, *VIT, *PROBED, *NOISED), "train/x0", (), "--objective.gamma"),
    "my_network.py": Case(
        (*SHIPPED, "--model.width", "8", *NOISED), "eval/denoising/x0/t0.50", ("UNetConfig",), "--model.width"
    ),
    "my_sampler.py": Case(
        (*SHIPPED, *VIT, *SAMPLED), "eval/generation/umd10k@10/cfg2/", (), "--eval.generation.sampler.steps"
    ),
    "my_data.py": Case((*VIT, *PROBED, *HIDDEN, *NOISED), "eval/fewshot/both/top1", ("Npz",), "--data.title"),
    "my_evaluator.py": Case(
        (*SHIPPED, *VIT, *PROBED, *HIDDEN, *NOISED, "--eval.rank.images", "16"),
        "eval/rank/patches",
        (),
        "--eval.rank.images",
    ),
    "my_optimiser.py": Case((*SHIPPED, *VIT, *PROBED, *HIDDEN, *NOISED), "train/loss", ("Lion",), "--optim.beta2"),
}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys) -> Call:
    """`call(file, *words)`: runs a file in a folder with all of them, on one device; exit code, stdout and stderr."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    monkeypatch.setattr("umd_eqx.training.flops.measured_peak_flops", lambda **_: 1e12)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    rng = np.random.default_rng(0)
    images = {f"{split}_images": rng.integers(0, 256, (48, 28, 28, 3), np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": (np.arange(48, dtype=np.uint8) % 3)[:, None] for split in ("train", "test")}
    np.savez(tmp_path / "bloodmnist.npz", **images, **labels)
    monkeypatch.chdir(tmp_path)

    def run_file(name: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(name, run_name="__main__")
        out, error = capsys.readouterr()
        return end.value.code or 0, out, error

    return run_file


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def refused(result: tuple[int, str, str]) -> str:
    """The error of a command that was refused in one line, with exit code 2."""
    code, _, error = result
    assert code == 2
    assert len(error.splitlines()) == 1
    return error.removeprefix("error: ")
