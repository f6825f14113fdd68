"""What a user can get wrong on the command line: exit code 2, a few lines, the name of what is at fault."""

import json
from collections import namedtuple
from pathlib import Path

import pytest

from umd_eqx.commands.cli import main
from umd_eqx.core.bounds import require_bounded_floats, require_bounded_integers
from umd_eqx.recipes.pretrain import PRETRAIN


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs the command, which must be refused and leave nothing behind; gives what it said."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as end:
            main(PRETRAIN, list(words))
        out, error = capsys.readouterr()
        assert end.value.code == 2
        assert "Traceback" not in out + error
        assert len(error.splitlines()) <= 30
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return call


def one_line(error: str) -> str:
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    return error


def test_an_unknown_preset_is_met_with_the_nearest(refused):
    error = one_line(refused("maskdti"))
    assert "there is no 'maskdti'. Did you mean maskdit?" in error
    assert all(name in error for name in PRETRAIN)


@pytest.mark.parametrize("flag", [("--optim.lr", "1e-3"), ("--optim.lr=1e-3",), ("--data.no-flip",), ("--dry-run",)])
def test_a_preset_after_a_flag_is_told_to_come_first(refused, flag):
    error = one_line(refused(*flag, "mae"))
    assert "'mae' comes after a flag. Write the preset first: mae --flag VALUE" in error


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("umd", "--path.steps", "0"), "--path.steps"),
        (("mae", "--model.variant", "mu/28"), "--objective.mask-ratio"),
        (("umd", "--run-dir", "gs://bucket/x"), "--run-dir"),
    ],
)
def test_what_cannot_work_is_named_before_anything_is_made(refused, words, field):
    assert one_line(refused(*words)).startswith(f"error: {field}: ")


@pytest.mark.parametrize("value", [str(2**31), str(2**63), str(10**400)])
@pytest.mark.parametrize(
    "flag",
    ["optim.steps", "path.steps", "data.size", "data.batch-size", "data.workers", "log.every", "checkpoint.keep"],
)
def test_numbers_have_upper_bounds(refused, flag, value):
    error = one_line(refused("umd", "--optim.epochs", "None", "--optim.steps", "10", f"--{flag}", value))
    assert error.startswith(f"error: --{flag}: ")
    assert "too large" in error
    assert "Use at most" in error
    assert len(error) < 200


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--data.workers", "100000"), "--data.workers"),
        (("--model.class-token-std", "1e308"), "--model.class-token-std"),
        (("--model.class-token-std", "nan"), "--model.class-token-std"),
        (("--model.position-std", "inf"), "--model.position-std"),
        (("--optim.lr", "1e308"), "--optim.lr"),
        (("--optim.lr", "nan"), "--optim.lr"),
        (("--optim.epochs", "1e15"), "--optim.epochs"),
        (("--data.size", str(2**20)), "--data.size"),
        (("--path.steps", str(2**30)), "--path.steps"),
    ],
)
def test_what_no_machine_can_do_is_named_by_its_flag(refused, words, field):
    assert one_line(refused("umd", *words)).startswith(f"error: {field}: ")


@pytest.mark.parametrize("steps", [2**31, 2**63, 10**6])
def test_a_sampler_of_too_many_steps_is_refused(refused, steps):
    assert one_line(refused("sample", "--steps", str(steps))).startswith("error: --steps: ")


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("umd", "--run-dir", "x" * 300), "--run-dir"),
        (("umd", "--run-dir", "/".join(["x" * 100] * 50)), "--run-dir"),
        (("umd", "--run-dir", "/".join(["x" * 100] * 37)), "--run-dir"),  # there is no room for what is in it
        (("umd", "--json", "x" * 250), "--json"),  # there is no room for the name that it is written under first
        (("sample", "--out", "x" * 300 + ".png"), "--out"),
    ],
)
def test_a_path_that_is_too_long_is_refused_before_anything_is_made(refused, words, field):
    error = one_line(refused(*words))
    assert error.startswith(f"error: {field}: ")
    assert "is too long a path" in error
    assert len(error) < 250


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("y" * 5000,), "there is no 'yyyy"),
        (("sample", "--sampler", "ddim", "--sampler", "/".join(["y" * 100] * 60)), "there is no 'yyyy"),
        (("umd", "--data.train-split", "a\nb\x1b[31m"), "a\\nb\\x1b[31m"),
        (("umd", "--data.dir", "new\nline"), "new\\nline"),
        (("umd", "--data.name", "\udc80"), "\\udc80"),
    ],
)
def test_whatever_was_given_the_error_is_one_short_line(refused, words, shown):
    error = one_line(refused(*words))
    assert shown in error
    assert error[:-1].isprintable()
    assert len(error) < 1000


def test_every_preset_is_within_the_bounds():
    for preset in PRETRAIN.values():
        require_bounded_integers(preset())
        require_bounded_floats(preset())


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("--optim.lrr", "--optim.lr"), ("--modle.variant", "--model.variant"), ("--limit-step", "--limit-steps")],
)
def test_a_misspelt_flag_is_met_with_the_nearest(refused, misspelt, meant):
    error = refused("umd", misspelt, "1")
    assert misspelt in error
    assert "Perhaps you meant" in error
    assert meant in error.split("Perhaps you meant")[1]


def test_a_flag_of_another_preset_is_refused(refused):
    assert "--objective.mask-ratio" in refused("umd", "--objective.mask-ratio", "0.5")


def test_a_value_that_is_no_number_is_named(refused):
    assert "--optim.lr" in refused("umd", "--optim.lr", "fast")


@pytest.mark.parametrize("ratio", ["-0.1", "1", "0.999", "0.0", "nan"])
@pytest.mark.parametrize(
    ("preset", "flag"),
    [
        ("mae", "--objective.mask-ratio"),
        ("maskdit", "--objective.mask-ratio"),
        ("umd", "--objective.denoising.mask-ratio"),
        ("umd", "--objective.reconstruction.mask-ratio"),
    ],
)
def test_a_mask_ratio_that_a_term_cannot_live_with_is_named(refused, preset, flag, ratio):
    error = one_line(refused(preset, flag, ratio))
    assert error.startswith(f"error: {flag}: {float(ratio)} ")
    if ratio == "0.0":
        assert "hides no patch, but the term x0_hidden requires hidden patches" in error


@pytest.mark.parametrize(
    ("words", "field", "said"),
    [
        (("umd", "--model.variant", "giant/4"), "--model.variant", "NAME one of mu, nano, Ti, S, B, L, H, XL"),
        (("umd", "--model.variant", "B"), "--model.variant", "'B' is not a variant"),
        (("umd", "--model.variant", "mu/5"), "--model.variant", "Choose a patch size from 1, 2, 4, 7, 14, 28"),
        (("umd", "--data.size", "30"), "--model.variant", "a patch size of 4 does not divide an image of 30 x 30"),
        (("umd", "--model.class-tokens", "0"), "--model.class-tokens", "0 is too few"),
        (("umd", "--data.batch-size", "12"), "--data.batch-size", "over 8 devices. Use 16"),
        (("umd", "--data.batch-size", "0"), "--data.batch-size", "0 is too small"),
        (("umd", "--objective.no-noise-prob", "1.5"), "--objective.no-noise-prob", "outside [0, 1]"),
        (("umd", "--objective.no-noise-prob", "0.01"), "--objective.no-noise-prob", "is less than one image"),
        (("umd", "--optim.accumulate", "3"), "--optim.accumulate", "Use one of 1, 2, 4"),
        (("umd", "--limit-steps", "0"), "--limit-steps", "0 is too small"),
        (("umd", "--limit-steps", "-3"), "--limit-steps", "-3 is too small"),
        (("umd", "--optim.lr", "0"), "--optim.lr", "0.0 is not positive"),
        (("umd", "--optim.lr", "nan"), "--optim.lr", "nan is not positive"),
        (("umd", "--optim.lr", "inf"), "--optim.lr", "inf"),
        (("umd", "--optim.weight-decay", "nan"), "--optim.weight-decay", "nan"),
        (("umd", "--optim.warmup", "1"), "--optim.warmup", "1.0 is outside [0, 1)"),
        (("umd", "--optim.epochs", "3"), "--optim.epochs", "give either epochs or steps"),
        (("umd", "--optim.steps", "0"), "--optim.steps", "0 is not positive"),
        (("umd", "--ema.rate", "2"), "--ema.rate", "outside (0, 1]"),
        (("umd", "--seed", "-1"), "--seed", "-1 is outside"),
        (("umd", "--log.every", "0"), "--log.every", "0 is too small"),
        (("umd", "--checkpoint.keep", "0"), "--checkpoint.keep", "0 is too small"),
        (("umd", "--eval.fewshot.every", "0"), "--eval.fewshot.every", "0 is too small"),
        (("umd", "--data.area-min", "0"), "--data.area-min", "outside (0, 100]"),
        (("umd", "--data.max-broken", "-1"), "--data.max-broken", "is negative"),
        (("umd", "--data.train-split", "training"), "--data.train-split", "Splits of fashion_mnist: train, test"),
        (("umd", "--data.test-split", "train[5:5]"), "--data.test-split", "has no images"),
        (("umd", "--data.name", "cifar10"), "--data.dir", "'cifar10' is not included in this package"),
        (("umd-b4-in64",), "--data.dir", "'imagenet2012' is not included in this package"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_the_way_out(refused, words, field, said):
    error = one_line(refused(*words))
    assert error.startswith(f"error: {field}: ")
    assert said in error


def test_a_data_folder_that_is_missing_empty_or_of_another_format_is_named(refused, tmp_path):
    assert "there is no folder" in one_line(refused("umd", "--data.dir", str(tmp_path / "missing")))
    (tmp_path / "empty").mkdir()
    assert one_line(refused("umd", "--data.dir", str(tmp_path / "empty"))).startswith("error: --data.dir: ")
    folder = tmp_path / "records/fashion_mnist/3.0.1"
    folder.mkdir(parents=True)
    description = {"name": "fashion_mnist", "version": "3.0.1", "fileFormat": "riegeli"}
    (folder / "dataset_info.json").write_text(json.dumps(description))
    error = one_line(refused("umd", "--data.dir", str(tmp_path / "records")))
    assert error.startswith("error: --data.dir: ")
    assert "--file_format=array_record" in error


def test_a_file_in_the_way_of_the_run_directory_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("")
    error = one_line(refused("umd", "--run-dir", str(tmp_path / "file/run")))
    assert error.startswith("error: --run-dir: ")
    assert "cannot be written to" in error


def test_too_small_a_disk_is_refused_before_the_first_step(tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    words = ["umd", "--run-dir", str(tmp_path / "run"), "--checkpoint.keep", "3"]
    with pytest.raises(SystemExit) as end:
        main(PRETRAIN, words)
    assert end.value.code == 2
    error = one_line(capsys.readouterr().err)
    assert "0.00 GB free, and checkpoints need 0.1" in error
    assert "(4 of 0.0" in error
    assert "keep fewer with --checkpoint.keep" in error
    assert not (Path(tmp_path) / "run/metrics.jsonl").exists()
