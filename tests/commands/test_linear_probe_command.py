"""`experiments/linear_probe.py` from end to end, on a small network and the shipped images."""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from faults.tiny import arrays, assert_equal_bit_for_bit, numbers, on_one_device
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.commands.linear_probe import linear_probe
from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import make_mesh
from umd_eqx.eval import EvalContext, FewShot
from umd_eqx.recipes.dump import load
from umd_eqx.recipes.linear_probe import LINEAR_PROBES
from umd_eqx.runs.finetuning import start_from
from umd_eqx.runs.on_network import recipe_on
from umd_eqx.runs.pretrained import from_pretrained

SPLITS = ("--data.train-split", "train[:1280]", "--data.test-split", "test[:500]", "--data.eval-batch-size", "64")
QUICK = (
    *SPLITS,
    "--optim.steps",
    "100",
    "--optim.lr",
    "20",
    "--data.batch-size",
    "128",
    "--checkpoint.every",
    "40",
    "--log.every",
    "10",
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)


def config_of(run_dir: Path):
    return load(json.loads((run_dir / "config.json").read_text())["config"])


def test_a_probe_is_trained_resumed_and_better_than_ridge_regression_on_fewer_labels(called, here, exported):
    file = exported(labels=True)
    for name, limits in (("whole", [()]), ("pieces", [("--limit-steps", "60"), ()])):
        for limit in limits:
            code, out, error = called(linear_probe, "--run", file, "--run-dir", name, *QUICK, *limit)
            assert (code, error) == (0, ""), out
    config = config_of(here / "whole")
    whole = arrays(Path("whole").absolute(), config)
    assert_equal_bit_for_bit(arrays(Path("pieces").absolute(), config), whole)
    assert (here / "whole" / "report.html").exists()

    # The network has the weights of its export to the bit, with its label embedding and without its decoder.
    source = from_pretrained(file)
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(source.model, eqx.is_array))
    given = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    kept = {name.removeprefix(".model.backbone"): x for name, x in whole.items() if ".model.backbone." in name}
    assert_equal_bit_for_bit(kept, {name: given[name] for name in kept})
    missing = ("decoder", "decoder_positions", "mask_token", "head", "bridge")
    assert set(given) - set(kept) == {name for name in given if name[1:].partition(".")[0] in missing}
    assert ".condition.label_table" in kept
    # Momentum is kept for the head alone.
    moments = [name for name, x in whole.items() if name.startswith(".opt_state") and x.ndim]
    assert {name.rpartition("].trace")[2] for name in moments} == {".head.kernel", ".head.bias"}

    rows = numbers(here / "whole")
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    data = config.data
    context = EvalContext(*data.open(), CosineTable(), 28, 64, make_mesh(jax.devices()[:1]))
    ridge = FewShot(shots=20, seeds=1, l2=None, features=("both",), raw_pixels=False).build(context)
    best = ridge(source.model, jax.random.key(0)).scalars["both/top1"]
    assert rows[-1]["eval/probe/top1"] > best > 30.0


def test_a_dry_run_and_the_help_train_nothing(called, here, exported):
    code, out, _ = called(linear_probe, "--run", exported(labels=False), "--dry-run")
    assert code == 0
    assert "memory" in out
    code, out, _ = called(linear_probe, "--help")
    assert code == 0
    for text in ("* linear-probe ", "linear-probe-fashion", "--run ", "--optim.trust", "--model.features"):
        assert text in out
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--run: the network is missing"),
        (("--run", "nowhere"), "--run: there is no nowhere"),
        (("--run", "EXPORT", "--optim.accumulate", "2"), "--optim.accumulate: the objective needs a batch of 128"),
        (
            ("--run", "EXPORT", "--model.network.variant", "S/7"),
            "--model.network.variant: the network of the run has mu/7, not S/7",
        ),
        (("--run", "EXPORT", "--weights", "best"), "--weights: 'best' is not a kind of weights"),
        (("--run", "EXPORT", "--objective.time", "2"), "--objective.time: 2.0 is outside"),
        (("--run", "EXPORT", "--eval.probe.images", "0"), "--eval.probe.images: 0 is not valid"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(called, here, exported, words, said):
    file = exported(labels=False) if "EXPORT" in words else ""
    words = [file if word == "EXPORT" else word for word in words]
    code, out, error = called(linear_probe, *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    assert not list(here.iterdir())


def test_the_recipe_follows_the_run(exported):
    start, source = start_from(exported(), "raw")
    name, config = recipe_on(LINEAR_PROBES, None, start, source)
    assert name == "linear-probe-fashion"
    assert (config.model.network, config.model.network_classes) == (source.config, 10)
    assert (config.path, config.start) == (source.path, start)
    name, config = recipe_on(LINEAR_PROBES, "linear-probe", start, source)
    assert (config.data.source, config.data.size) == (source.data.source, 28)
    # Another data set has the published recipe; a run that is probed at a noise level keeps it.
    fewshot = {"type": "FewShot", "time": 0.051}
    spec = source.spec._replace(name="flowers")
    other = dataclasses.replace(source, spec=spec, trained={"eval": {"fewshot": fewshot}})
    name, config = recipe_on(LINEAR_PROBES, None, start, other)
    assert (name, config.objective.time, config.data.batch_size) == ("linear-probe", 0.051, 4096)


def test_the_published_recipe_has_the_published_numbers():
    config = LINEAR_PROBES["linear-probe"]()
    optim, data = config.optim, config.data
    assert (optim.lr, optim.lr_batch_size, optim.epochs, optim.warmup) == (0.1, 256, 100, 0.05)
    assert (optim.momentum, optim.trust, optim.weight_decay) == (0.9, 1e-3, 5e-5)
    assert (data.batch_size, data.area_min, data.flip, data.train_split) == (4096, 80.0, True, "train[:99%]")
    assert config.model.features == "class_tokens"


def test_a_run_of_a_probe_is_not_a_network_to_sample_from(called, here, exported):
    code, _, _ = called(linear_probe, "--run", exported(), "--run-dir", "p", *QUICK, "--limit-steps", "1")
    assert code == 0
    with pytest.raises(BadInput, match="is not a network that predicts images"):
        from_pretrained(here / "p")
