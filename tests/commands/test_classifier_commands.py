"""`experiments/supervised.py` and `experiments/finetune_classifier.py` from end to end, on the shipped images."""

import json
from pathlib import Path

import numpy as np
import pytest
from faults.tiny import arrays, assert_equal_bit_for_bit, numbers, on_one_device
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.commands.finetune_classifier import finetune_classifier
from umd_eqx.commands.supervised import supervised
from umd_eqx.core.errors import BadInput
from umd_eqx.models.vit.classifiers import ViTClassifier
from umd_eqx.recipes.build import build
from umd_eqx.recipes.dump import dump, load
from umd_eqx.recipes.finetune_classifier import FINETUNE_CLASSIFIER
from umd_eqx.recipes.supervised import SUPERVISED
from umd_eqx.runs.pretrained import from_pretrained

QUICK = (
    *("--data.train-split", "train[:640]", "--data.test-split", "test[:200]", "--data.eval-batch-size", "50"),
    *("--optim.steps", "60", "--data.batch-size", "32", "--checkpoint.every", "20", "--log.every", "5"),
)
ALL = {**SUPERVISED, **FINETUNE_CLASSIFIER}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)


def config_of(run_dir: Path):
    return load(json.loads((run_dir / "config.json").read_text())["config"])


def in_one_and_in_pieces(called, command, *words: str) -> None:
    for name, limits in (("whole", [()]), ("pieces", [("--limit-steps", "31"), ()])):
        for limit in limits:
            code, out, error = called(command, *words, "--run-dir", name, *QUICK, *limit)
            assert (code, error) == (0, ""), out


def test_supervised_training_learns_and_resumes(called, here):
    in_one_and_in_pieces(called, supervised, "fashion", "--model.network.variant", "mu/7", "--model.drop-path", "0.1")
    config = config_of(here / "whole")
    assert_equal_bit_for_bit(arrays(Path("pieces").absolute(), config), arrays(Path("whole").absolute(), config))
    last = numbers(here / "whole")[-1]
    assert last["eval/accuracy/recognised"] > 0.35  # chance has 0.1
    assert (here / "whole" / "report.html").exists()
    with pytest.raises(BadInput, match="is not a network that predicts images"):
        from_pretrained(here / "whole")


def test_fine_tuning_starts_from_the_weights_and_changes_early_layers_least(called, here, exported):
    file = exported(labels=True)
    in_one_and_in_pieces(called, finetune_classifier, "--from", file, "--optim.layer-decay", "0.2")
    config = config_of(here / "whole")
    whole = arrays(Path("whole").absolute(), config)
    assert_equal_bit_for_bit(arrays(Path("pieces").absolute(), config), whole)
    assert numbers(here / "whole")[-1]["eval/accuracy/recognised"] > 0.25  # chance has 0.1
    source = from_pretrained(file).model

    def moved(name: str, before) -> np.ndarray:
        after, before = whole[f".model.backbone{name}"], np.asarray(before)
        return np.sqrt(np.mean((after - before) ** 2, axis=tuple(range(1, before.ndim))))

    blocks = moved(".encoder.blocks.mlp.up.kernel", source.encoder.blocks.mlp.up.kernel)
    assert blocks[0] < 0.5 * blocks[1] < 0.25 * blocks[2]
    assert 0 < moved(".embed.kernel", source.embed.kernel).mean() < 0.5 * blocks[0]
    # A folder of its own by default, beside the source.
    code, _, _ = called(finetune_classifier, "--from", file, *QUICK, "--limit-steps", "1")
    assert code == 0
    assert any(path.name.startswith("random-classifier,") for path in (here / "runs").iterdir())


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (finetune_classifier, (), "--from: the network is missing"),
        (finetune_classifier, ("--from", "nowhere"), "--from: there is no nowhere"),
        (supervised, ("fashion", "--objective.mixup", "-1"), "--objective.mixup: -1.0 is not valid"),
        (supervised, ("fashion", "--data.batch-size", "31"), "--data.batch-size: 31 images cannot be mixed in pairs"),
        (supervised, ("fashion", "--model.drop-path", "1"), "--model.drop-path: 1.0 is outside [0, 1)"),
        (supervised, ("fashion", "--optim.layer-decay", "0"), "--optim.layer-decay: 0.0 is outside (0, 1]"),
        (supervised, ("s4-in65",), "preset: there is no 's4-in65'. Did you mean s4-in64?"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(called, here, command, words, said):
    code, out, error = called(command, *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_is_built_dumped_and_loaded(name):
    config = ALL[name]()
    assert load(json.loads(json.dumps(dump(config)))) == config
    built = build(config, config.data.expected)
    state = built.abstract_state()
    assert isinstance(state.model, ViTClassifier)
    assert state.model.backbone.decoder is None
    assert built.step_flops() > 0  # traces the loss


def test_the_supervised_recipe_has_the_numbers_of_its_source():
    config = SUPERVISED["s4-in64"]()
    built = build(config, config.data.expected)
    assert (config.data.batch_size, config.data.size, config.data.area_min) == (1024, 64, 5.0)
    assert float(built.parts.schedule(built.warmup)) == pytest.approx(1e-3)
    assert built.warmup == pytest.approx(10_000, rel=0.02)
    assert built.total == round(90 * 1_268_355 / 1024)
    assert config.optim.weight_decay * 1e-3 == pytest.approx(1e-4)
    assert (config.objective.mixup, config.model.features, config.optim.clip) == (0.2, "patches", 1.0)


def test_the_fine_tuning_recipe_has_the_numbers_of_its_source():
    config = FINETUNE_CLASSIFIER["finetune-classifier"]()
    optim, objective = config.optim, config.objective
    built = build(config, config.data.expected)
    assert float(built.parts.schedule(built.warmup)) == pytest.approx(2e-3)
    assert built.warmup == 5 * 1_268_355 // 1024
    assert (optim.weight_decay, optim.beta1, optim.beta2, optim.layer_decay) == (0.05, 0.9, 0.999, 0.65)
    assert (objective.mixup, objective.cutmix, objective.label_smoothing) == (0.8, 1.0, 0.1)
    assert (config.model.drop_path, config.model.head_std, config.data.area_min) == (0.1, 2e-5, 8.0)
