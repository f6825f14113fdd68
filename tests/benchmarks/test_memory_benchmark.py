"""The benchmark of memory, on a part that compiles quickly: its JSON output is a stable interface."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from umd_eqx.core.errors import BadInput

FILE = Path(__file__).parents[2] / "benchmarks" / "memory.py"
CONTRACT = {"preset", "part", "devices", "bytes", "program", "arguments", "temporaries", "outputs", "programs"}


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("benchmark_memory", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_row_has_what_was_promised(memory, tmp_path, capsys):
    file = tmp_path / "rows.json"
    words = ["--presets", "latent-umd", "tokenizer-kl", "--parts", "encoding", "statistics", "--json", str(file)]
    assert memory.run(words) == 0
    rows = json.loads(file.read_text())
    assert [(row["preset"], row["part"], row["devices"]) for row in rows] == [
        *(("latent-umd", "encoding", 1), ("latent-umd", "encoding", 8)),
        *(("tokenizer-kl", "statistics", 1), ("tokenizer-kl", "statistics", 8)),
    ]
    for row in rows:
        assert row.keys() == CONTRACT
        assert row["bytes"] == row["arguments"] + row["temporaries"] + row["outputs"] == max(row["programs"].values())
    assert rows[1]["bytes"] < rows[0]["bytes"]  # the devices share the batch
    assert "| `latent-umd` | - | 0.0" in capsys.readouterr().out


def test_every_preset_is_among_those_that_are_measured(memory):
    from umd_eqx.recipes.finetune import FINETUNE
    from umd_eqx.recipes.pretrain import PRETRAIN

    assert {*PRETRAIN, *FINETUNE, "tokenizer-kl", "tokenizer-fsq", "classifier"} == set(memory.RECIPES)
    assert set(memory.parts_of("classifier", 1)) == {"step", "accuracy"}


def test_programs_that_are_alike_are_compiled_once(memory, monkeypatch):
    compiled = []
    monkeypatch.setattr(memory, "compiled_memory", lambda lowered: compiled.append(1) or memory.Memory(1, 2, 3))
    compiler = memory.Compiler()
    for preset in ("umd", "dit"):
        (program,) = memory.parts_of(preset, 1)["denoising"].values()
        assert compiler(program, 1).total == 6
    assert len(compiled) == 1


@pytest.mark.parametrize("words", [["--presets", "ump"], ["--devices", "0"], ["--json", "nowhere/a.json"]])
def test_words_that_cannot_work_are_refused(memory, words):
    with pytest.raises(BadInput) as error:
        memory.run(words)
    assert f"--{error.value.field}" == words[0]
