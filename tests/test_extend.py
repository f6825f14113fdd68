"""The files of docs/extend.md, run as a reader would run them."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parent.parent / "docs" / "extend.md"
FILES = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", DOCUMENT.read_text(), re.S))
SMALL = [
    *("--data.batch-size", "8", "--data.eval-batch-size", "8", "--limit-steps", "2"),
    *("--log.every", "1", "--run-dir", "run"),
    *("--eval.fewshot.shots", "2", "--eval.fewshot.seeds", "1"),
    *("--eval.fewshot.test-images", "16", "--eval.fewshot.knn", "3"),
    *("--eval.reconstruction.images", "8", "--eval.reconstruction.pictures", "4"),
]
NOISE = ["--eval.denoising.images", "8", "--eval.denoising.pictures", "4"]


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder with the files of the document, as the working directory; two ways to run one."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def run_file(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(name, run_name="__main__")

    def command(name, *words):
        with pytest.raises(SystemExit) as end:
            run_file(name, *words)
        assert end.value.code == 0
        return tmp_path / "run"

    return run_file, command


def last_row(run_dir):
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])


def test_each_file_is_under_40_lines():
    assert set(FILES) == {"my_objective.py", "my_evaluator.py", "my_optimiser.py", "my_data.py", "my_run.py"}
    for text in FILES.values():
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(lines) < 40


def test_nothing_private_is_needed():
    for text in FILES.values():
        names = [
            alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) for alias in node.names
        ]
        assert not [name for name in names if name.startswith("_")]


def test_an_objective_in_one_file(beside):
    words = ["mae-visible", "--model.variant", "mu/7", "--objective.mask-ratio", "0.5", *SMALL]
    row = last_row(beside[1]("my_objective.py", *words))
    parts = row["train/x0_hidden"], row["train/x0_visible"]
    assert row["train/loss"] == pytest.approx(0.9 * parts[0] + 0.1 * parts[1], rel=1e-5)


def test_an_evaluator_in_one_file(beside):
    words = ["umd-rank", "--model.variant", "mu/7", "--eval.rank.images", "32", *SMALL, *NOISE]
    row = last_row(beside[1]("my_evaluator.py", *words))
    assert 1.0 <= row["eval/rank/patches"] <= 32.0


def test_an_optimiser_in_one_file(beside):
    words = ["umd", "--optim", "lion", "--optim.beta2", "0.9", "--model.variant", "mu/7", *SMALL, *NOISE]
    run_dir = beside[1]("my_optimiser.py", *words)
    optim = json.loads((run_dir / "config.json").read_text())["config"]["optim"]
    assert (optim["type"], optim["beta2"], optim["weight_decay"]) == ("Lion", 0.9, 0.05)
    beside[1]("my_optimiser.py", "export", "--run", "run", "--out", "lion.safetensors")
    assert (run_dir.parent / "lion.safetensors").exists()


def test_a_data_set_in_one_file(beside):
    run_file, command = beside
    run_file("my_data.py", "build")
    words = ["umd-stripes", "--model.variant", "mu/4", *SMALL, *NOISE]
    run_dir = command("my_data.py", *words)
    data = json.loads((run_dir / "environment.json").read_text())["data"]
    assert (data["channels"], data["num_classes"], data["num_train"]) == (3, 2, 512)
    assert (run_dir / "report.html").exists()
