"""Fine-tuning: the published recipes, how one follows its source, and the command from end to end."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import on_one_device, rows, tiny

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.finetune import finetune
from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable
from umd_eqx.objectives import MaskedDenoising, Term, Unified
from umd_eqx.recipes.build import build
from umd_eqx.recipes.finetune import FINETUNE, starts_from_weights
from umd_eqx.runs.finetuning import follow, start_from
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.runs.run import run
from umd_eqx.sampling import DDIM

PUBLISHED = [name for name in FINETUNE if "in64" in name]
DIT = MaskedDenoising((Term("x0", "all", 0.5), Term("eps", "all", 0.5)), 0.0)
MAE = MaskedDenoising((Term("x0", "hidden", 1.0),), 0.75, noised=False)

CHEAP = (
    *("--limit-steps", "2", "--log.every", "1", "--data.eval-batch-size", "32"),
    *("--eval.fewshot.shots", "2", "--eval.fewshot.seeds", "1", "--eval.fewshot.test-images", "24"),
    *("--eval.denoising.images", "8", "--eval.generation.samples", "10", "--eval.generation.columns", "1"),
    *("--eval.generation.sampler.steps", "2", "--eval.generation.cfg-scales", "1", "2"),
)


@pytest.fixture(autouse=True)
def one_device_everywhere(monkeypatch):
    on_one_device(monkeypatch)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A pre-training run of two steps."""
    directory = tmp_path_factory.mktemp("source") / "small"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(tiny(eval={}), run_dir=directory, preset="umd", limit_steps=2)
    return directory


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipes_have_the_published_numbers(name):
    config = FINETUNE[name]()
    data, optim, model = config.data, config.optim, config.model
    epochs = 50 if starts_from_weights(name) else 400
    assert (data.batch_size, data.area_min, data.size, data.flip) == (256, 95.0, 64, True)
    assert (optim.lr, optim.lr_batch_size, optim.epochs, optim.warmup) == (1.5e-4, 256, epochs, 0.05)
    assert (optim.beta1, optim.beta2, optim.weight_decay, optim.clip) == (0.9, 0.999, 0.0, 1.0)
    assert (model.variant, model.labels, model.class_tokens, model.class_token_std) == ("B/4", True, 4, 0.0)
    assert model.conditioning == ("token" if name.startswith("mae") else "adaln")
    assert config.ema.rate_for(256, labels=True) == pytest.approx(1e-4)
    assert config.path == CosineTable()
    generation = config.eval["generation"]
    assert (generation.every, generation.samples, generation.cfg_scales) == (25_000, 10_240, (1.0, 2.0, 4.0))
    assert (generation.protocol, generation.weights) == ("umd10k", "ema")
    assert generation.sampler == DDIM(steps=125, eta=1.0)


@pytest.mark.parametrize("name", FINETUNE)
def test_umd_and_mae_still_reconstruct_a_twentieth_and_nothing_noised_is_masked(name):
    objective = FINETUNE[name]().objective
    if name.removeprefix("latent-").startswith(("umd", "mae")):
        assert objective == Unified(DIT, MAE, 0.05)
        assert objective.num_clean(256) == 12  # as the reference truncates
    else:
        assert objective == DIT
    noised = objective.denoising if isinstance(objective, Unified) else objective
    assert noised.label_dropout == 0.1


def test_the_recipe_follows_the_sources_system_network_and_data(source):
    name, config = follow(FINETUNE, None, *start_from(source, "raw"))
    there = tiny()
    assert name == "umd-ft"
    assert config.model == dataclasses.replace(there.model, labels=True)
    assert (config.data.source, config.data.size) == (there.data.source, there.data.size)
    assert config.optim == FINETUNE["umd-ft"]().optim
    assert config.start.digest == from_pretrained(source, weights="raw").digest


def test_training_begins_with_the_sources_weights_and_fresh_labels(source):
    _, config = follow(FINETUNE, None, *start_from(source, "ema"))
    theirs = from_pretrained(source)
    model = build(config, theirs.spec).init(theirs.model).model
    assert model.num_classes == 10
    np.testing.assert_array_equal(model.encoder.blocks.norm1.scale, theirs.model.encoder.blocks.norm1.scale)
    np.testing.assert_array_equal(model.embed.kernel, theirs.model.embed.kernel)
    assert np.std(model.condition.label_table) > 0


def called(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        exit_with(finetune, list(words))
    return end.value.code


def test_the_command_trains_measures_and_goes_on_where_it_stopped(source, capsys):
    figures = source.parent / "figures.json"
    assert called("--from", str(source), *CHEAP, "--json", str(figures)) == 0
    out = capsys.readouterr().out
    (result,) = json.loads(figures.read_text())
    distance = "eval/generation/umd10k@10/cfg1/fd_fashion"
    directory = source.parent / "small-ft"
    assert result["recipe"] == json.loads((directory / "config.json").read_text())["config"]
    assert (result["run_dir"], result[distance]) == (str(directory), result["metrics"][distance]["final"])
    assert result["metrics"][distance]["better"] == "lower"
    assert f"report: {directory / 'report.html'}" in out
    last = rows(directory)[-1]
    assert last["step"] == 2
    generated = {name for name in last if name.startswith("eval/generation/")}
    assert {"eval/generation/umd10k@10/cfg2/fd_fashion", "eval/generation/umd10k@10/cfg1/recognised"} <= generated
    assert not any("untrained" in name for name in last)
    assert {path.parent.name for path in (directory / "pictures").glob("*/*.png")} >= {
        "generation-cfg1",
        "generation-cfg2",
        "generation-trajectories",
    }
    assert json.loads((directory / "config.json").read_text())["preset"] == "umd-ft"
    assert called("--from", str(source), *CHEAP) == 0
    assert "is finished: it is at step 2" in capsys.readouterr().out
    # What it generates from is a run like any other.
    assert from_pretrained(directory).model.num_classes == 10


def test_a_source_that_changed_is_refused(source, tmp_path, capsys):
    directory = tmp_path / "ft"
    flags = ("--from", str(source), "--run-dir", str(directory), *CHEAP)
    assert called(*flags, "--weights", "raw", "--print-config") == 0
    assert json.loads(capsys.readouterr().out)["start"]["weights"] == "raw"
    _, config = follow(FINETUNE, None, *start_from(source, "raw"))
    wrong = dataclasses.replace(config, start=dataclasses.replace(config.start, digest="0"), eval={})
    with pytest.raises(BadInput, match=r"from: the weights in .* are not those that this run was configured with"):
        run(wrong, run_dir=directory, preset="umd-ft", limit_steps=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--from: the weights to start from are missing. Pass a run, such as --from runs/umd"),
        (("--from", "nowhere"), "--from: there is no nowhere"),
        (("--from", "{source}", "--weights", "both"), "--weights: 'both' is not a kind of weights. Use raw or ema"),
        (("umd-fd", "--from", "{source}"), "Did you mean umd-ft?"),
        (("dit-scratch", "--from", "{source}"), "--from: dit-scratch is trained from scratch"),
        (
            ("umd-b4-in64-ft", "--from", "{source}"),
            "--model.variant is mu/7 there and B/4 here; --model.class-tokens is 1 there and 4 here",
        ),
        (
            ("--from", "{source}", "--model.conditioning", "token"),
            "--model.conditioning is adaln there and token here",
        ),
        (
            ("--from", "{source}", "--model.block.rotary"),  # no array of another shape, and yet another network
            "--model.block.rotary is False there and True here",
        ),
        (("--from", "{source}", "--data.size", "27"), "--model.variant: a patch size of 7 does not divide"),
    ],
)
def test_what_cannot_be_fine_tuned_is_told_in_one_line(source, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert called(*(word.format(source=source) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert said in error
    assert not list(tmp_path.iterdir())


def test_another_image_size_begins_with_resampled_positions(source):
    _, config = follow(FINETUNE, None, *start_from(source, "ema"))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, size=56))
    theirs = from_pretrained(source)
    built = build(config, theirs.spec)
    shapes = jax.eval_shape(lambda: built._init(theirs.model)).model
    assert shapes.positions.shape == (64, 64)
    assert shapes.image_shape == (56, 56, 1)
