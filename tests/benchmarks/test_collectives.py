"""The collective contract: what a training step communicates, and where its state lies, for each strategy."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "collectives.py"


def rows(tmp_path: Path, *words: str) -> list[dict]:
    """The rows of the benchmark in a process of its own, which starts with as many devices as it needs."""
    file = tmp_path / "rows.json"
    changed = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    }
    command = [sys.executable, str(FILE), *words, "--json", str(file)]
    done = subprocess.run(command, env=env | changed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.slow
def test_a_network_of_the_paper_keeps_the_contract_on_eight_devices(tmp_path):
    found = {row["strategy"]: row for row in rows(tmp_path, "--sizes", "B", "--devices", "8")}
    assert list(found) == ["dp", "fsdp", "tp", "fsdpxtp"]
    assert not any(row["broken"] or row["all_to_all"] for row in found.values())
    assert found["dp"]["gathered"] == found["dp"]["summed"] == 0
    assert found["dp"]["reduced"] == pytest.approx(1, abs=0.03)
    assert found["fsdp"]["gathered"] == pytest.approx(2, abs=0.05)
    assert found["fsdp"]["reduced"] == pytest.approx(1, abs=0.03)
    assert [(row["data"], row["fsdp"], row["tensor"]) for row in found.values()] == [
        *((8, 1, 1), (1, 8, 1)),
        *((4, 1, 2), (1, 4, 2)),
    ]
    assert all(row["state_share"] == pytest.approx(1, abs=0.02) for row in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("size", ["B", "L", "H"])
@pytest.mark.parametrize("devices", [8, 64, 512])
def test_each_network_keeps_the_contract_on_each_number_of_devices(tmp_path, size, devices):
    found = rows(tmp_path, "--sizes", size, "--devices", str(devices))
    assert [row["broken"] for row in found] == [[]] * 4
    assert {row["devices"] for row in found} == {devices}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_collectives", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"gathered": 1.0}, "gathered 1 is"),
        ({"gathered": 3.0}, "gathered 3 is"),
        ({"reduced": 2.0}, "reduced 2 is"),
        ({"all_to_all": 0.001}, "all-to-all 0.001 is"),
        ({"exchanged": 0.1}, "exchanged 0.1 is"),
        ({"undivided": 0.65}, "undivided 0.65 is"),  # of B over 512 devices, if each array is divided along one axis
        ({"exact": False}, "a loop of unknown length"),
    ],
)
def test_what_breaks_the_contract_is_named(benchmark, changed, said):
    kept = benchmark.Row("B", "fsdp", 8, 1, 8, 1, 2.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.001, True, (), 1.0)
    broken = benchmark.broken_parts(dataclasses.replace(kept, **changed))
    assert len(broken) == (said is not None)
    assert all(text.startswith(said) for text in broken)


@pytest.mark.parametrize("words", [["--devices", "1"], ["--devices", "99999"], ["--strategies", "zero"]])
def test_what_has_no_contract_is_refused(benchmark, words):
    with pytest.raises(benchmark.BadInput):
        benchmark.run(words)
