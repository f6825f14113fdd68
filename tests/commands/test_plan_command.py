"""`experiments/plan.py`: a table and rows of JSON for devices that are not here, and one line for what is wrong."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from faults.tiny import tiny

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.plan import plan, plan_text
from umd_eqx.runs import planning
from umd_eqx.runs.planning import Row

ROOT = Path(__file__).resolve().parents[2]
ROW = Row("v5e:2x4", "dp", 8, 1, 1, 8, "step", "update", 5 * 10**9, True, 10**9, 10**12, 60.0)
DONE = dataclasses.replace(
    ROW,
    argument_bytes=10**9,
    collective_bytes=3 * 10**9,
    collectives={"all-reduce f32": 3 * 10**9},
    predicted_ms=250.0,
    predicted_mfu=0.4,
    limit="memory",
)
FIELDS = ("target", "strategy", "devices", "memory_bytes", "fits", "collective_bytes", "flops", "predicted_ms")


def test_the_table_shows_each_row_and_the_time_of_the_fastest_that_fits():
    slow = dataclasses.replace(DONE, strategy="fsdp", data=1, fsdp=8, predicted_ms=500.0)
    faster = dataclasses.replace(DONE, strategy="tp2", predicted_ms=1.0, fits=False)
    failed = dataclasses.replace(ROW, strategy="fsdp2", fits=False, memory_bytes=49 * 10**9)
    text = plan_text([DONE, slow, faster, failed], steps=14_400, width=200)
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["dp"][1:] == ["8", "x", "1", "x", "1", "5.00", "yes", "3.00", "1", "250", "40.0%", "memory"]
    assert lines["fsdp2"][-7:] == ["49.00", "no", "-", "1", "-", "-", "-"]
    assert "14,400 steps with dp: 1h00m, 8 chip-hours" in text


def test_nothing_is_promised_where_nothing_fits():
    assert "chip-hours" not in plan_text([dataclasses.replace(DONE, fits=False)], steps=10)


def test_rows_are_written_as_they_are_compiled(tmp_path, capsys, monkeypatch):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    out = tmp_path / "rows.json"
    seen = []

    def fake(piece, target):
        seen.append(json.loads(out.read_text()) if out.exists() else [])
        return dataclasses.replace(DONE, strategy=piece.strategy, target=target.name)

    monkeypatch.setattr("umd_eqx.commands.plan.compiled", fake)
    assert plan(["tiny", "--target", "cpu:8", "--json", str(out)], {"tiny": tiny}) == 0
    rows = json.loads(out.read_text())
    assert [row["strategy"] for row in rows] == ["dp", "fsdp", "tp", "fsdpxtp"]
    assert [len(rows) for rows in seen] == [0, 1, 2, 3]
    assert all(set(FIELDS) | {"predicted_mfu", "preset"} <= set(row) for row in rows)
    text = capsys.readouterr().out
    assert "Assumptions of the predicted times" in text
    assert "nominal figures" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--target: the devices to compile for are missing"),
        (["--target", "tpu"], "--target: 'tpu' is not a target"),
        (["--target", "cpu:8", "--strategy", "fsdp3"], "--strategy: fsdp3 does not divide 8 devices"),
        (["--target", "cpu:8", "--sharding.fsdp", "3"], "--sharding.fsdp: 3 x 1 (--sharding.tensor) does not divide"),
        (["--target", "cpu:8", "--data.batch-size", "12"], "--data.batch-size: 12 cannot be divided evenly"),
        (["--target", "cpu:8", "--json", "/nowhere/rows.json"], "--json: there is no folder /nowhere"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(words, said, capsys, monkeypatch):
    monkeypatch.setattr(planning.Program, "lower", None)
    with pytest.raises(SystemExit) as error:
        exit_with(lambda given: plan(given, {"tiny": tiny}), words)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("target", "module", "extra"), [("v5e:4x4", "libtpu", "plan-tpu"), ("h100:8", "jax_cuda12_plugin", "plan-cuda")]
)
def test_without_the_extra_the_command_says_how_to_install_it(target, module, extra):
    code = f"""
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == {module!r} else find(name, *more)
sys.argv = ["plan", "umd", "--target", {target!r}]
runpy.run_path("experiments/plan.py", run_name="__main__")
"""
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    problem = f"error: --target: compiling for {target} needs packages that are not installed."
    assert done.stderr.strip().splitlines()[-1] == f'{problem} Install them with `pip install -e ".[{extra}]"`'
