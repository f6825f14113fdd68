"""The page of a run: whole, alone, valid, and whatever the run directory lacks."""

import json
import re

import matplotlib as mpl
import numpy as np
import pytest
from report.pages import Page

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.eval import Denoising, FewShot, Generation
from umd_eqx.report import MetricsFile, save_pictures
from umd_eqx.report.curves import running_mean, sparkline
from umd_eqx.report.rundir import RunDirectory
from umd_eqx.report.webpage import write_webpage

EVALUATORS = {"fewshot": FewShot(), "denoising": Denoising(), "generation": Generation()}


def read(run_dir, data=None, **evaluators):
    return RunDirectory.read(run_dir, {name: e.display(data) for name, e in (EVALUATORS | evaluators).items()})


def check(run_dir, data=None, **evaluators):
    path = write_webpage(read(run_dir, data, **evaluators))
    assert path == run_dir / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    page = Page(text)
    for reference in page.references:
        assert reference.startswith(("data:", "#")), reference
        assert not reference.startswith("#") or reference[1:] in page.ids
    assert not re.search(r"https?://|@import|<script", text)
    return text, page


def make_run(run_dir, pictures=3):
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({"preset": "umd-tiny", "config": {"steps": 400, "note": "<&>"}}))
    environment = {"parameters": 23_400_000, "command": ["pretrain.py", "umd-tiny", "--log.note", "two words"]}
    (run_dir / "environment.json").write_text(json.dumps(environment))
    with MetricsFile.open(run_dir / "metrics.jsonl") as metrics:
        for step in range(0, 401, 10):
            row = {
                "train/loss": np.exp(-step / 50) + 0.1,
                "train/loss_denoising": 0.5 * np.exp(-step / 50) + 0.01,
                "train/lr": 1e-3,
                "train/grad_norm": 1.0 if step != 50 else np.nan,
                "train/something_else": step,
                "throughput/images_per_s": 800.0,
                "throughput/wall_seconds": step * 2.0,
            }
            if step % 100 == 0:
                for feature, scale in (("class_tokens", 1.0), ("patches", 0.9), ("both", 1.1)):
                    row[f"eval/fewshot/{feature}/top1"] = scale * (40 + step / 10)
                    row[f"eval/fewshot/{feature}/knn"] = scale * (30 + step / 10)
                for time in (0.1, 0.5, 0.9):
                    row[f"eval/denoising/eps/t{time:.2f}"] = 1 - time
                    row[f"eval/denoising/x0/t{time:.2f}"] = time
                for scale in (1, 2):
                    row[f"eval/generation/umd10k@500/cfg{scale}/fd_fashion"] = 90.0 - step / 10 - scale
                    row[f"eval/generation/umd10k@500/cfg{scale}/recognised"] = 0.4 + step / 1000
            if step == 0:
                row["eval/fewshot/raw_pixels/top1"] = 61.0
            metrics.append(step, row)
    noise = np.random.default_rng(0)
    for index in range(pictures):
        save_pictures(run_dir, index * 100, {"eval/samples": noise.integers(0, 256, (8, 16, 3), np.uint8)})


def test_a_full_run(tmp_path):
    run_dir = tmp_path / "umd-tiny"
    make_run(run_dir)
    text, page = check(run_dir)
    for shown in (
        "finished, 400 steps",
        "23.4 M",
        "13m20s",
        "pretrain.py umd-tiny --log.note 'two words'",
        "Running the same command again resumes",
        "raw pixels 61.0%",
        "both 88.0%",
        "Learning rate",
        "train/something_else",
        "noise level",
        "Distance of the samples from real images (fd_fashion, umd10k@500)",
        "cfg2 48",
        "Samples recognised as the requested class",
        '"note": "<&>"',
        "eval-samples, step 200",
    ):
        assert shown in page.text, shown
    assert page.tags.count("img") == 3
    assert "nan" not in re.findall(r'<path d="([^"]*)"', text)


@pytest.mark.parametrize(
    ("probe", "kind"),
    [
        (FewShot(), "class_tokens"),
        (FewShot(headline="patches"), "patches"),
        (FewShot(features=("patches", "both")), "patches"),
        (FewShot(headline="both"), "both"),
    ],
)
def test_the_headline_is_the_kind_of_features_that_the_recipe_names_and_not_the_best(tmp_path, probe, kind):
    # Of the three kinds "both" is the best of each run, and "patches" the worst.
    run_dir = tmp_path / "run"
    make_run(run_dir)
    text, page = check(run_dir, fewshot=probe)
    accuracies = {"class_tokens": 80.0, "patches": 72.0, "both": 88.0}
    name = kind.replace("_", " ")
    assert f"<dt>few-shot top-1, {name}</dt><dd>{accuracies[kind]:.1f}%</dd>" in text
    assert text.count("few-shot top-1, ") == 1
    for other, accuracy in accuracies.items():
        mark = " (headline)" if other == kind else ""
        assert f"{other.replace('_', ' ')}{mark} {accuracy:.1f}%" in page.text
    assert page.text.count("(headline)") == 1
    assert "choosing the best of them on the test images would bias the result" in page.text
    assert [*read(run_dir, fewshot=probe).headlines()] == [f"eval/fewshot/{kind}/top1"]


def test_what_was_measured_again_has_the_headline_of_its_evaluation(tmp_path):
    probe = FewShot(headline="both")
    kinds = {f"eval/fewshot{again}/{kind}/top1": 1.0 for again in ("", "[knn=5]") for kind in ("patches", "both")}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1} | kinds) + "\n")
    names = ["eval/fewshot/both/top1", "eval/fewshot[knn=5]/both/top1"]
    assert [*read(tmp_path, fewshot=probe).headlines()] == names
    text, _ = check(tmp_path, fewshot=probe)
    assert "<dt>fewshot[knn=5] top-1, both</dt>" in text


@pytest.mark.parametrize("pixels", ["raw_pixels", "raw_pixels_32px"])
def test_pixels_at_any_side_are_the_line_to_beat_and_never_the_headline(tmp_path, pixels):
    row = {f"eval/fewshot/{kind}/top1": value for kind, value in ((pixels, 90.0), ("patches", 60.0))}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step} | row) + "\n" for step in (1, 2)))
    assert [*read(tmp_path).headlines()] == ["eval/fewshot/patches/top1"]
    assert "Dashed: a probe of the raw pixels." in check(tmp_path)[1].text


@pytest.mark.parametrize(("data", "warned"), [("stripes", True), ("fashion_mnist", False), (None, False)])
def test_images_that_the_classifier_of_clothes_does_not_know_are_shown_with_a_warning(tmp_path, data, warned):
    run_dir = tmp_path / "run"
    make_run(run_dir)
    _, page = check(run_dir, data)
    assert ("Warning: images of stripes are scored by a classifier of fashion_mnist" in page.text) is warned


def test_the_same_run_gives_the_same_page_and_leaves_nothing_behind(tmp_path):
    run_dir = tmp_path / "run"
    make_run(run_dir)
    settings = dict(mpl.rcParams)
    first = write_webpage(RunDirectory.read(run_dir)).read_bytes()
    assert write_webpage(RunDirectory.read(run_dir)).read_bytes() == first
    assert dict(mpl.rcParams) == settings
    assert not list(run_dir.glob("*.tmp"))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 10, "train/loss": 0.5}],
        [{"step": 0, "eval/fewshot/raw_pixels/top1": 0.5}],
        [{"step": 0, "eval/fewshot/both/knn": 0.5, "eval/fewshot/both/top1": None}],
        [{"step": 10, "train/loss": None, "train/grad_norm": None, "eval/denoising/x0/t0.5": None}],
        [{"step": 10, "train/loss": -1.0}, {"step": 20, "train/loss": 0.0, "train/loss_b": 1e300}],
        [{"step": 10, "train/loss": "text", "other": True}],
        [{"step": step, "train/loss": 1.0} for step in range(3000)],
    ],
)
def test_whatever_a_run_has(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(tmp_path)


def test_an_empty_directory(tmp_path):
    _, page = check(tmp_path)
    assert "no numbers yet" in page.text


def test_files_that_cannot_be_read_are_passed_over(tmp_path):
    (tmp_path / "config.json").write_text('{"preset": ')
    (tmp_path / "environment.json").write_text("[1, 2]")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "train/loss": 1.0}\n{"step": 2')
    folder = tmp_path / "pictures" / "broken"
    folder.mkdir(parents=True)
    (folder / "00000010.png").write_bytes(b"not a picture")
    (folder / "name.png").mkdir()
    _, page = check(tmp_path)
    assert "img" not in page.tags


def test_hostile_names_stay_text(tmp_path):
    hostile = "<script>alert(1)</script>\"'&"
    run_dir = tmp_path / hostile.replace("/", "-")
    make_run(run_dir, pictures=0)
    (run_dir / "config.json").write_text(json.dumps({"preset": hostile, "name": hostile}))
    (run_dir / "environment.json").write_text(json.dumps({"command": [hostile], "x": hostile}))
    save_pictures(run_dir, 0, {hostile: np.zeros((2, 2, 3), np.uint8)})
    with MetricsFile.open(run_dir / "metrics.jsonl") as metrics:
        names = ("train/loss", "train/", "eval/fewshot/", "eval/denoising/", "eval/")
        metrics.append(0, {f"{name}{hostile}{tail}": 0.5 for name in names for tail in ("", "/top1", "/t0.5")})
        metrics.append(1, {f"{name}{hostile}{tail}": 0.6 for name in names for tail in ("", "/top1", "/t0.5")})
    _, page = check(run_dir)
    assert "script" not in page.tags
    assert page.text.count(hostile) > 10


def test_the_page_stays_small(tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    for step in range(12):
        for name in ("eval/a", "eval/b"):
            save_pictures(tmp_path, step, {name: noise.integers(0, 256, (100, 500, 3), np.uint8)})
    size = next((tmp_path / "pictures" / "eval-a").iterdir()).stat().st_size
    monkeypatch.setattr("umd_eqx.report.webpage.PICTURE_BYTES", int(5.5 * size))
    text, page = check(tmp_path)
    assert page.tags.count("img") == 5
    assert "19 more in pictures/" in page.text
    assert len(text) < 5 * size * 4 / 3 + 20_000
    monkeypatch.undo()
    assert check(tmp_path)[1].tags.count("img") == 2 * (1 + 6)


def test_smoothing_keeps_a_constant_and_passes_over_gaps():
    assert running_mean([2.0] * 5, 3) == pytest.approx([2.0] * 5)
    assert running_mean([1.0, float("nan"), 1.0], 3) == pytest.approx([1.0, 1.0, 1.0])
    assert np.isnan(running_mean([float("nan"), 1.0], 3)[0])
    noisy = running_mean(list(np.random.default_rng(0).normal(size=4000)), 100)
    assert np.std(noisy[1000:]) == pytest.approx((1 / 200) ** 0.5, rel=0.5)


def test_sparklines_need_two_points():
    assert sparkline([1.0, float("nan")]) == ""
    assert sparkline([1.0, 1.0]).startswith("<svg")


def test_an_evaluation_of_a_readers_own_is_drawn_as_it_says(tmp_path):
    # Nothing in the report knows an evaluator by name.
    rows = [{"step": step, "eval/rank/of/patches": step / 2, "eval/rank/of/noise": 7.0} for step in (2, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = Section("Directions in use", (Chart("rank", "Effective rank", "of/(?P<line>.+)"),), note="Of 192.")
    shown = Display(
        (section,),
        title="rank",
        headline="of/(?P<line>.+)",
        headline_text="of {line}",
        baseline="noise",
        percent="of/.*",
    )
    run = RunDirectory.read(tmp_path, {"rank": shown})
    assert run.headlines() == {"eval/rank/of/patches": "rank of patches"}
    page = write_webpage(run).read_text()
    for text in ("<h2>Directions in use</h2>", "Effective rank", "patches (headline)", "Of 192.", "<dd>2.0%</dd>"):
        assert text in page, text
    assert "Effective rank" not in write_webpage(RunDirectory.read(tmp_path)).read_text()
