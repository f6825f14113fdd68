"""The command line: which word is the preset, what is printed without running, what the flags do to a recipe."""

import dataclasses
import itertools
import json
import re

import pytest
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.commands.cli import exit_with, in_flags, main
from umd_eqx.commands.finetune import finetune
from umd_eqx.commands.linear_probe import linear_probe
from umd_eqx.commands.training import BOOLEAN_FLAGS, split_preset
from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.dump import load
from umd_eqx.recipes.pretrain import PRETRAIN, umd
from umd_eqx.runs.dryrun import dry_run


@pytest.fixture
def said(capsys):
    """What the command prints when it ends well."""

    def call(*words: str, presets=PRETRAIN) -> str:
        with pytest.raises(SystemExit) as end:
            main(presets, words)
        out, error = capsys.readouterr()
        assert end.value.code in (0, None), error
        return out

    return call


@pytest.mark.parametrize(
    ("words", "name", "flags"),
    [
        ([], "umd", []),
        (["mae"], "mae", []),
        (["--optim.lr", "1"], "umd", ["--optim.lr", "1"]),
        (["dit", "--optim.lr", "1"], "dit", ["--optim.lr", "1"]),
        # A value may have the name of a preset.
        (["--run-dir", "mae"], "umd", ["--run-dir", "mae"]),
        (["mae", "--run-dir", "mae"], "mae", ["--run-dir", "mae"]),
    ],
)
def test_the_first_word_is_the_preset(words, name, flags):
    assert split_preset(PRETRAIN, words) == (name, flags)


@pytest.mark.parametrize(
    "words",
    [
        ["--dry-run", "mae"],
        ["--optim.lr", "1", "mae"],
        ["--optim.lr=1", "mae"],
        ["mae", "dit"],
        ["--data.no-flip", "mae"],
    ],
)
def test_a_preset_anywhere_else_is_refused(words):
    with pytest.raises(BadInput, match="comes after a flag"):
        split_preset(PRETRAIN, words)


def test_the_help_lists_every_preset_and_the_flags_of_the_chosen_one(said):
    out = said("mae", "--help")
    for name, preset in PRETRAIN.items():
        assert f"{'*' if name == 'mae' else ' '} {name} " in out
        # Lines are wrapped to the width of the terminal: their first words.
        assert " ".join(preset.__doc__.split()[:4]) in " ".join(out.split())
    assert "--objective.mask-ratio FLOAT" in out
    assert "--objective.denoising" not in out
    assert "--objective.denoising.mask-ratio FLOAT" in said("--help")
    # Structure is the preset's.
    assert "--objective.terms" not in out
    assert "--objective.noised" not in out


@pytest.mark.parametrize("name", ["umd", "x-prediction", "latent-umd"])  # three kinds of paths
def test_every_flag_is_explained(said, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # one column of flags
    lines = [line.strip("│ ") for line in said(name, "--help").splitlines()]
    flags = {line: below for line, below in itertools.pairwise(lines) if re.match(r"--[a-z]", line)}
    assert any(flag.startswith("--path.") for flag in flags)
    assert {flag for flag, below in flags.items() if below.startswith(("(default", "--", "╰"))} == set()


def test_every_flag_without_a_value_is_known_as_one(said, capsys):
    # A word behind one of them is no value: it is a preset in the wrong place.
    out = said("--help")
    for command in (finetune, linear_probe):
        with pytest.raises(SystemExit):
            exit_with(command, ["--help"])
        out += capsys.readouterr().out
    found = {word.strip(",|│ ") for word in out.replace("|", " ").split() if word.startswith("--")}
    negative = {flag for flag in found if flag.split(".")[-1].removeprefix("--").startswith("no-")}
    positive = {flag.replace("--no-", "--").replace(".no-", ".") for flag in negative} & found
    assert positive == set(BOOLEAN_FLAGS)


@pytest.mark.parametrize("name", PRETRAIN)
def test_the_printed_configuration_is_the_recipe(said, name):
    assert load(json.loads(said(name, "--print-config"))) == PRETRAIN[name]()


def test_flags_change_the_recipe_and_nothing_else(said):
    flags = "--optim.lr 3e-4 --objective.reconstruction.mask-ratio 0.5 --eval.denoising.levels 0.25 0.5 --data.flip"
    config = load(json.loads(said("umd", "--print-config", *flags.split(), "--seed", "7")))
    assert config.optim.lr == 3e-4
    assert config.objective.reconstruction.mask_ratio == 0.5
    assert config.objective.denoising == umd().objective.denoising
    assert config.eval["denoising"].levels == (0.25, 0.5)
    assert (config.data.flip, config.seed) == (True, 7)
    assert (config.model, config.path, config.ema) == (umd().model, umd().path, umd().ema)


def test_a_recipe_of_ones_own_stands_beside_the_others(said):
    def mine():
        """Mine, with a seed of its own."""
        return dataclasses.replace(umd(), seed=42)

    out = said("mine", "--help", presets={**PRETRAIN, "mine": mine})
    assert "* mine" in out
    assert "Mine, with a seed of its own." in out
    assert load(json.loads(said("mine", "--print-config", presets={**PRETRAIN, "mine": mine}))).seed == 42


def test_ctrl_c_outside_the_training_loop_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        main({"interrupted": interrupted}, [])
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "interrupted: the last checkpoint, if any, is unchanged\n")


def test_a_dry_run_says_what_a_run_would_take_and_leaves_nothing(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = said("umd", "--dry-run", "--model.variant", "mu/7", "--data.batch-size", "16", "--data.eval-batch-size", "8")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("FLOPs"))
    assert lines["data"] == "fashion_mnist, 60,000 to train on, 10 classes"
    assert lines["batch"] == "16 x 28 x 28 x 1"
    steps, warmup = umd().optim.steps, umd().optim.warmup
    assert lines["steps"] == f"{steps:,} of a schedule of {steps:,}, with {int(steps * warmup):,} warmup steps"
    assert lines["devices"].startswith("8 x cpu")
    (evaluations,) = (line for line in out.splitlines() if line.startswith("memory of evaluations"))
    assert re.search(
        r"up to 0\.0\d GB on each device beside the state \((fewshot|reconstruction|denoising)\)$", evaluations
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_data_that_are_asked_for_and_missing_is_refused(tmp_path):
    config = PRETRAIN["umd-b4-in64"]()
    data = config.data.moved(str(tmp_path / "missing"))
    with pytest.raises(BadInput, match="there is no folder"):
        dry_run(dataclasses.replace(config, data=data))


def test_a_dry_run_without_the_data_goes_by_the_recipe_only_where_the_same_are_asked_for(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    recipe = PRETRAIN["umd-b4-in64"]()
    for field in ("train_split", "test_split"):
        data = dataclasses.replace(recipe.data, **{field: "train[:10%]"})
        with pytest.raises(BadInput) as error:  # its number of images is not the recipe's
            dry_run(dataclasses.replace(recipe, data=data), recipe=recipe)
        assert error.value.field == "data.source.dir"
    shipped = PRETRAIN["umd"]()
    wrong = dataclasses.replace(shipped, data=dataclasses.replace(shipped.data, train_split="training"))
    with pytest.raises(BadInput) as error:
        dry_run(wrong, recipe=shipped)
    assert error.value.field == "data.train_split"
    with pytest.raises(BadInput) as error:
        dry_run(shipped, limit_steps=0)
    assert error.value.field == "limit_steps"


@pytest.mark.slow
def test_a_dry_run_of_a_published_recipe_needs_no_data(said):
    out = said("umd-b4-in64", "--dry-run")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["parameters"] == "174,157,062"
    assert lines["data"].endswith("(not on this machine: as described by the recipe)")
    assert lines["steps"] == "990,902 of a schedule of 990,902, with 49,545 warmup steps"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            BadInput("data.batch_size", "0 is too small", "Use 1 or more"),
            "--data.batch-size: 0 is too small. Use 1 or more",
        ),
        (BadInput("data.source.dir", "there is no x", "Set it"), "--data.dir: there is no x. Set it"),
        (BadInput("data.source.type", "it is a", "Use b"), "--data.source: it is a. Use b"),
        (
            BadInput("out", "it is on", "`data.flip=False`, `data.source.name=mnist`, `model.labels=True` or `a.b_c`"),
            "--out: it is on. --data.no-flip, --data.name mnist, --model.labels or --a.b-c",
        ),
        (BadInput("preset", "there is no 'x'", "Use `a b` or `X`"), "preset: there is no 'x'. Use `a b` or `X`"),
        (BadInput("config.json", "it is edited", "Restore it"), "config.json: it is edited. Restore it"),
        (BadInput("/tmp/a.b", "it is damaged", "Restore it"), "/tmp/a.b: it is damaged. Restore it"),
    ],
)
def test_an_error_names_the_flags_of_fields(error, line):
    assert in_flags(error) == line
