"""`experiments/evaluate.py`: the numbers, and everything that they depend on."""

import json

from umd_eqx.commands.evaluate import BENCHMARK, evaluate
from umd_eqx.eval.generation import PROTOCOLS

QUICK = ("--samples", "16", "--steps", "2", "--batch-size", "16")


def test_a_result_holds_all_that_it_depends_on(called, exported, here):
    code, out, error = called(evaluate, "--run", exported(), "--json", "result.json", *QUICK)
    assert (code, error) == (0, "")
    assert "umd10k@16: 16 samples against the validation images" in out
    (result,) = json.loads((here / "result.json").read_text())
    assert result["protocol"]["name"] == "umd10k@16"
    assert (result["protocol"]["samples"], result["protocol"]["rounding"]) == (16, "truncate")
    assert (result["reference"]["count"], len(result["reference"]["sha256"])) == (10_000, 64)
    assert (result["extractor"]["name"], len(result["extractor"]["sha256"])) == ("fashion", 64)
    assert (result["sampler"]["name"], result["sampler"]["steps"]) == ("dpmpp", 2)
    assert result["guidance"] == {"kind": "classifier-free", "cfg_scale": 2.0, "interval": None}
    assert (result["precision"], result["data"]) == ("float32", "fashion_mnist")
    assert result["warnings"] == []
    metrics = result["metrics"]
    assert {"fd_fashion", "is_fashion", "kid_fashion"} <= metrics.keys()
    assert not {"fid", "is", "kid"} & metrics.keys()
    # Noise is further from clothes than clothes are.
    assert metrics["fd_fashion"] > result["extra"]["floor_fd_fashion"] > 0
    assert 0 <= result["extra"]["recognised"] <= 1


def test_what_cannot_be_is_told_in_one_line(called, exported):
    for words, said in (
        (("--samples", "3"), "--samples: 3 samples are too few"),
        (("--steps", "0"), "--steps: 0"),
        (("--json", "nowhere/x.json"), "--json: there is no folder"),
        (("--extractor", "inception"), "--inception-weights: no weights were found"),
        (("--inception-weights", "nowhere.safetensors"), "--inception-weights: there is no file nowhere.safetensors"),
        (("--data-dir", "nowhere"), "nowhere"),
    ):
        code, _, error = called(evaluate, "--run", exported(), *words)
        assert code == 2, words
        assert len(error.splitlines()) == 1
        assert said in error


def test_what_should_be_known_of_the_numbers_is_said_and_kept_with_them(called, exported, here, monkeypatch):
    monkeypatch.setattr("umd_eqx.commands.evaluate.domain_warning", lambda by, data: f"{by.name} does not know {data}")
    words = ("--run", exported(labels=False, denoises=False), "--json", "result.json", "--no-baseline", *QUICK)
    code, _, error = called(evaluate, *words)
    never = "mae was not trained on noised images, so its samples look like noise"
    assert (code, error) == (0, f"warning: {never}\n")
    (result,) = json.loads((here / "result.json").read_text())
    assert result["warnings"] == [never, "fashion does not know fashion_mnist"]


def test_the_published_benchmark_of_generation(called, exported, here):
    words = ("--benchmark", "generation", "--run", exported(), "--cfg-scale", "1.5", "--json", "result.json")
    code, out, error = called(evaluate, *words, "--no-baseline", *QUICK)
    assert code == 0
    assert "the numbers are neither FID nor Inception scores" in error
    assert "umd50k@16: 16 samples against the validation images" in out
    (result,) = json.loads((here / "result.json").read_text())
    assert {"name": "ddim", "eta": 1.0, "grid": {"type": "ReferenceGrid"}}.items() <= result["sampler"].items()
    assert result["guidance"]["cfg_scale"] == 1.5
    assert len(result["warnings"]) == 1
    assert (BENCHMARK.protocol, BENCHMARK.flags.sampler.steps, PROTOCOLS["umd50k"].samples) == ("umd50k", 250, 50_000)
    assert PROTOCOLS["umd50k"].reference == "validation"
