"""Finished runs that are measured again: which evaluations, by which names, and what becomes of the rows."""

import dataclasses
import json

import jax
import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import on_one_device, rows, tiny

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.evaluate import evaluate
from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.eval import Denoising, FewShot, Generation
from umd_eqx.recipes.build import Built
from umd_eqx.recipes.dump import dump
from umd_eqx.report import RunDirectory, insert_row, read_metrics
from umd_eqx.runs.remeasure import changed, label, not_yet_measured
from umd_eqx.runs.run import run

PROBE = FewShot(every=4, shots=2, seeds=1, test_images=24, knn=3)
CONFIG = tiny(eval={"fewshot": PROBE})


@pytest.fixture(autouse=True)
def one_device_everywhere(monkeypatch):
    on_one_device(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, probed at the end."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(CONFIG, run_dir=directory, preset="tiny", limit_steps=2)
    return directory


def measured_with(directory, **settings):
    config = dataclasses.replace(CONFIG, eval={"fewshot": dataclasses.replace(PROBE, **settings)})
    run(config, run_dir=directory, preset="tiny", limit_steps=2)


def test_changed_settings_measure_the_last_checkpoint_once_and_leave_the_other_rows_alone(finished, capsys):
    lines = (finished / "metrics.jsonl").read_bytes().splitlines()
    config = (finished / "config.json").read_bytes()
    measured_with(finished, shots=3)
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "fewshot[shots=3]/class_tokens/top1" in out
    *before, new = (finished / "metrics.jsonl").read_bytes().splitlines()
    assert before == lines
    new = json.loads(new)
    assert new["step"] == 2
    assert {"eval/fewshot[shots=3]/both/top1", "eval/untrained/fewshot[shots=3]/both/top1"} <= new.keys()
    assert all("fewshot[shots=3]/" in name for name in new if name != "step")
    page = (finished / "report.html").read_text()
    assert "fewshot[shots=3]" in page
    assert "In brackets: the settings of evaluations that were repeated" in page
    assert (finished / "config.json").read_bytes() == config
    assert set(new.values()) != set(rows(finished)[1].values())

    # The same command once more, and one whose settings change no number: nothing is left to be measured.
    there = (finished / "metrics.jsonl").read_bytes()
    measured_with(finished, shots=3)
    measured_with(finished, every=1, headline="patches")
    assert (finished / "metrics.jsonl").read_bytes() == there
    assert "measuring" not in capsys.readouterr().out


def test_a_run_goes_on_after_it_was_measured_again(tmp_path):
    directory = tmp_path / "run"
    run(tiny(eval={}), run_dir=directory, preset="tiny", limit_steps=2)
    run(tiny(), run_dir=directory, preset="tiny", limit_steps=2)  # an evaluator that is new has its own name
    assert [row["step"] for row in rows(directory)] == [1, 2, 2]
    assert "eval/denoising/eps/t0.50" in rows(directory)[-1]
    assert (directory / "pictures/denoising-pictures/00000002.png").exists()
    wall = rows(directory)[1]["throughput/wall_seconds"]
    run(tiny(), run_dir=directory, preset="tiny", limit_steps=3)
    assert [row["step"] for row in rows(directory)] == [1, 2, 2, 3]
    assert rows(directory)[-1]["throughput/wall_seconds"] > wall


def test_what_was_changed_is_told_by_name():
    sampled = Generation(samples=100)
    recorded = json.loads(json.dumps(dump(sampled)))
    assert changed(recorded, sampled) == {}
    sampler = dataclasses.replace(sampled.sampler, steps=9)
    other = dataclasses.replace(sampled, every=3, cfg_scales=(1.0, 2.0), sampler=sampler)
    assert changed(recorded, other) == {"cfg_scales": [1.0, 2.0], "sampler.steps": 9}
    assert label("generation", changed(recorded, other)) == "generation[cfg_scales=1.0+2.0,sampler.steps=9]"
    # A dump of an older version lacks a field: it is then compared with its default.
    del recorded["frames"]
    del recorded["sampler"]["eta"]
    assert changed(recorded, sampled) == {}
    assert changed(recorded, dataclasses.replace(sampled, frames=3)) == {"frames": 3}
    assert changed(recorded, Denoising()) == {"type": "Denoising"}


def test_names_of_changes_have_no_slash_and_stay_apart():
    labels = {label("g", {"inception_weights": path}) for path in ("/a/b", "/a-b", "-a-b", "x" * 300)}
    assert len(labels) == 4
    assert all("/" not in text and len(text) < 100 for text in labels)


def test_a_damaged_configuration_is_one_line(tmp_path):
    for text in ("[]", "{", '{"config": 3}', '{"config": {"eval": 3}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadInput, match=r"run_dir: .*config.json cannot be read"):
            not_yet_measured(RunDirectory.read(tmp_path), {"fewshot": PROBE}, 2)


def test_a_further_row_is_put_behind_those_of_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.5}\n{"step": 2, "a": null}\n{"step": 3, "a": 1e-07}\n{"step": 4, "to')
    rows = insert_row(path, read_metrics(path), 2, {"b": float("nan"), "c": 3})
    expected = [(1, {"a": 1.5}), (2, {"a": None}), (2, {"b": None, "c": 3}), (3, {"a": 1e-07})]
    assert rows == read_metrics(path) == [{"step": step, **row} for step, row in expected]


def test_the_probe_of_a_finished_run_is_that_of_the_run(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("umd_eqx.commands.probe.make_mesh", lambda: make_mesh(jax.devices()[:1]))

    def probed(*words):
        with pytest.raises(SystemExit) as end:
            exit_with(evaluate, ["--run", str(finished), "--benchmark", "probe", *words])
        out, error = capsys.readouterr()
        assert (end.value.code, error) == (0, "")
        return json.loads((tmp_path / "p.json").read_text())[0], out

    result, out = probed("--json", str(tmp_path / "p.json"))
    own = {name.removeprefix("eval/fewshot/"): v for name, v in rows(finished)[1].items() if "eval/fewshot/" in name}
    assert result["metrics"] == own
    assert [result["settings"][name] for name in ("shots", "weights", "knn")] == [2, "raw", 3]
    assert (result["data"]["test_images"], result["seed"]) == (10_000, 0)
    (line,) = (line for line in out.splitlines() if line.startswith("both "))
    assert line.split()[1] == f"{own['both/top1']:.1f}"
    other, _ = probed("--json", str(tmp_path / "p.json"), "--shots", "3", "--weights", "ema", "--no-raw-pixels")
    assert (other["settings"]["shots"], other["settings"]["raw_pixels"]) == (3, False)
    assert other["weights"] != result["weights"]
    kept = [json.loads(path.read_text())[0] for path in (finished / "eval").glob("probe-*.json")]
    assert sorted(it["settings"]["shots"] for it in kept) == [2, 3]
    # The results of the run have both, and the file has those of the run, with its whole recipe.
    found = json.loads((finished / "results.json").read_text())
    assert sorted(it["settings"]["shots"] for it in found["measurements"].values()) == [2, 3]
    assert found["metrics"]["eval/fewshot/both/top1"]["final"] == own["both/top1"]
    assert found["metrics"]["eval/fewshot/both/top1"]["better"] == "higher"
    recipe = json.loads((finished / "config.json").read_text())["config"]
    assert found["recipe"] == result["run"]["recipe"] == recipe


def test_for_the_line_to_beat_only_a_model_is_built_and_no_second_training_state(tmp_path, monkeypatch):
    made, init = [], Built.init
    monkeypatch.setattr(Built, "init", lambda self, source=None: made.append(1) or init(self, source))
    run(CONFIG, run_dir=tmp_path / "run", preset="tiny", limit_steps=1)
    assert "eval/untrained/fewshot/both/top1" in rows(tmp_path / "run")[0]
    assert made == [1]
