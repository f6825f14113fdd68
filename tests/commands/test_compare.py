"""`experiments/compare.py` and `experiments/table.py` on runs that were really trained, and on what is no run."""

import json
import re

import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import on_one_device, tiny

from umd_eqx.commands.compare import compare_runs
from umd_eqx.commands.table import tabulate_runs
from umd_eqx.runs.run import run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny runs that differ in the seed, and one that differs in the learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        for name, fields in (("a", {}), ("b", {"seed": 1}), ("c", {"optim__lr": 1e-2})):
            run(tiny(optim__steps=4, log__every=2, **fields), run_dir=folder / name, preset="umd")
    return folder


def test_trained_runs_are_compared_from_the_tables_to_the_pictures(called, runs, here):
    words = [str(runs / name) for name in "abc"]
    code, out, error = called(compare_runs, *words, "--out", "page.html", "--json", "rows.json")
    assert (code, error) == (0, "")
    assert "a: 2 seeds, a, b" in out
    assert re.search(r"settings that differ +optim.lr\na +0.001\nc +0.01\n", out)
    first, second = json.loads((here / "rows.json").read_text())
    assert (first["seeds"], second["seeds"], first["steps"]) == ([0, 1], [0], [4, 4])
    assert first["recipe"]["optim"]["lr"] == 1e-3
    finals = [json.loads((runs / name / "results.json").read_text()) for name in "ab"]
    name = "eval/denoising/eps/t0.50"
    values = [result["metrics"][name]["final"] for result in finals]
    assert first["metrics"][name]["values"] == values
    assert first["metrics"][name]["mean"] == pytest.approx(sum(values) / 2)
    assert first["metrics"][name]["better"] == "lower"
    page = (here / "page.html").read_text()
    assert page.count("<img ") == 3
    assert not re.search(r"https?://|<script", page)
    code, out, _ = called(tabulate_runs, *words, "--markdown", "--json", "table.json")
    assert code == 0
    assert "| UMD-B/4 64 px | 31.8% | - | 19.8 | - | 46.9 | - | - | - |" in out
    assert re.search(r"^\| a \| - \|.*\| a, b \| 4 steps", out, flags=re.MULTILINE)
    assert len(json.loads((here / "table.json").read_text())) == 7 + 2


def test_a_run_writes_its_results_with_its_whole_recipe(runs):
    found = json.loads((runs / "c" / "results.json").read_text())
    assert found["recipe"]["optim"]["lr"] == 1e-2
    assert (found["step"], found["steps"], found["images_seen"]) == (4, 4, 32)
    assert found["parameters"] > 0
    assert found["packages"].keys() >= {"jax", "equinox"}


def test_what_is_no_run_is_told_in_one_line(called, runs, here):
    (here / "file").write_text("")
    for command in (compare_runs, tabulate_runs):
        for words, said in (
            ((f"{runs}/aa",), f"error: runs: there is no {runs}/aa. Did you mean {runs}/"),
            (("file",), "error: runs: none of file is a run"),
            ((), "error: runs: no RUN was given"),
            ((f"{runs}/a", "--json", "nowhere/x.json"), "error: --json: there is no folder nowhere"),
        ):
            code, _, error = called(command, *words)
            assert (code, len(error.splitlines())) == (2, 1), words
            assert error.startswith(said)
    code, _, error = called(compare_runs, f"{runs}/a", "--out", "nowhere/x.html")
    assert (code, error) == (2, "error: --out: there is no folder nowhere. Create it or choose another\n")
    code, _, error = called(tabulate_runs, f"{runs}/a", "--cfg-scale", "-1")
    assert code == 2
    assert error.startswith("error: --cfg-scale: -1.0 is not a guidance scale")
    assert not (here / "compare.html").exists()
