"""`results.json`: every figure of a run, with what it depends on."""

import json

import pytest

from umd_eqx.core.display import Display
from umd_eqx.core.files import save_json
from umd_eqx.report import MetricsFile, RunDirectory, read_results, write_results
from umd_eqx.report.results import FORMAT

RECIPE = {"type": "Config", "seed": 3, "data": {"batch_size": 32, "content": "ab"}, "optim": {"lr": 0.1}}
DISPLAYS = {"probe": Display(higher="top1", lower="error")}


@pytest.fixture
def run_dir(tmp_path):
    save_json(tmp_path / "config.json", {"format": 2, "preset": "umd", "overrides": {}, "config": RECIPE})
    facts = {"steps": 40, "parameters": 5, "flops_per_step": 7, "device": "cpu", "devices": 1, "packages": {"jax": "1"}}
    save_json(tmp_path / "environment.json", facts)
    with MetricsFile.open(tmp_path / "metrics.jsonl") as metrics:
        for step, loss, top1, error in ((10, 2.0, 50.0, 0.3), (20, 1.0, 70.0, 0.1), (30, 1.5, 60.0, float("nan"))):
            row = {"train/loss": loss, "eval/probe/top1": top1, "eval/probe/error": error, "eval/probe/other": 1.0}
            metrics.append(step, row | {"throughput/wall_seconds": step / 2})
    return tmp_path


def read(run_dir):
    write_results(RunDirectory.read(run_dir, DISPLAYS))
    return json.loads((run_dir / "results.json").read_text())


def test_it_holds_the_recipe_the_cost_and_the_final_and_best_values_with_their_steps(run_dir):
    found = read(run_dir)
    assert (found["format"], found["name"], found["preset"], found["seed"]) == (FORMAT, run_dir.name, "umd", 3)
    assert found["recipe"] == RECIPE
    assert (found["step"], found["steps"], found["images_seen"], found["flops"]) == (30, 40, 960, 210)
    assert (found["seconds"], found["parameters"], found["device"], found["devices"]) == (15.0, 5, "cpu", 1)
    assert found["packages"] == {"jax": "1"}
    assert found["metrics"]["eval/probe/top1"] == {
        "final": 60.0,
        "step": 30,
        "better": "higher",
        "best": 70.0,
        "best_step": 20,
    }
    error = found["metrics"]["eval/probe/error"]
    assert (error["final"], error["best"], error["best_step"]) == (None, 0.1, 20)
    assert found["metrics"]["train/loss"]["best"] == 1.0
    unknown = found["metrics"]["eval/probe/other"]
    assert (unknown["final"], unknown["better"], unknown["best"]) == (1.0, None, None)
    assert (run_dir / found["history"]).is_file()
    assert read_results(run_dir) == found


def test_what_was_measured_later_is_added_and_nothing_is_lost(run_dir):
    before = read(run_dir)
    added = {name: {"metrics": {"fid": fid}} for name, fid in (("umd10k-a", 5.0), ("umd10k-b", 4.0))}
    for name, result in added.items():
        (run_dir / "eval").mkdir(exist_ok=True)
        save_json(run_dir / "eval" / f"{name}.json", [result])
        found = read(run_dir)
    assert found["measurements"] == {
        name: {"metrics": {"fid": v}} for name, v in (("umd10k-a", 5.0), ("umd10k-b", 4.0))
    }
    assert found | {"measurements": {}} == before


def test_an_empty_directory_has_results_too_and_damaged_ones_are_not_read(tmp_path):
    found = read(tmp_path)
    assert (found["recipe"], found["step"], found["images_seen"], found["metrics"]) == (None, None, None, {})
    for content in ("{", "[]", ""):
        (tmp_path / "results.json").write_text(content)
        assert read_results(tmp_path) is None
    assert read_results(tmp_path / "nowhere") is None
