"""The page of a comparison: whole, alone, valid, with every run's pictures and curves."""

import dataclasses
import re

import numpy as np
import pytest
from report.pages import Page

from umd_eqx.core.display import Display
from umd_eqx.report import MetricsFile, RunDirectory, save_pictures
from umd_eqx.report.comparecurves import MAX_DRAWN
from umd_eqx.report.comparepage import comparison_page, shown_setting
from umd_eqx.report.comparison import Comparison, Group

DISPLAY = Display(captions={"samples": "Samples of <everything>"}, headline="(?P<line>top1)", higher="top1")
HOSTILE = "<script>alert(1)</script>\"'&"


def check(comparison):
    """The page, checked: it nests, has no script, and refers to nothing outside of itself."""
    text = comparison_page(comparison).decode()
    assert text.startswith("<!DOCTYPE html>\n")
    page = Page(text)
    for reference in page.references:
        assert reference.startswith(("data:", "#")), reference
        assert not reference.startswith("#") or reference[1:] in page.ids
    assert not re.search(r"https?://|@import|<script", text)
    return text, page


@pytest.fixture
def group(tmp_path):
    def make(name, *tops, pictures=True, wall=True, steps=4, **fields):
        runs = []
        for index, top in enumerate(tops):
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            with MetricsFile.open(folder / "metrics.jsonl") as metrics:
                for step in range(1, steps + 1):
                    row = {"train/loss": 1 / step, "eval/probe/top1": top * step / steps}
                    metrics.append(step, row | ({"throughput/wall_seconds": 60.0 * step} if wall else {}))
            for step in (1, 4) if pictures else ():
                save_pictures(folder, step, {"probe/samples": np.full((2, 2, 3), 10 * index + step, np.uint8)})
            runs.append(RunDirectory.read(folder, {"probe": DISPLAY}))
        labels = tuple(f"{name}{index}" for index in range(len(runs)))
        given = {"settings": {"optim.lr": 0.5}, "data": "d", "batch_size": 8} | fields
        return Group(name, tuple(runs), labels, tuple(range(len(runs))), **given)

    return make


def test_settings_results_curves_and_pictures_of_every_run(group):
    groups = (group("small", 50.0, 52.0), group("large", 70.0, settings={"optim.lr": 2e-3}))
    text, page = check(Comparison(groups, ("a note",)))
    for shown in ("3 runs in 2 groups", "a note", "optim.lr", "0.002", "51.0 ± 1.4", "large0, step 4", "2 seeds"):
        assert shown in page.text, shown
    # The best is marked, and only it; the newest picture of each run is embedded, and no other.
    assert re.findall('<td class="best">([^<]*)</td>', text) == ["70", "70"]
    assert page.tags.count("img") == 3
    assert "step 1" not in page.text
    assert page.text.count("Samples of <everything>") == 1
    # Loss and accuracy against step, images and time; lines of two seeds, of their mean, and of the other group.
    assert len(re.findall(r"<svg viewBox", text)) == 6
    assert [text.count(f">{label}</text>") for label in ("step", "images seen", "wall time in minutes")] == [2, 2, 2]
    assert text.count('type="radio"') == 3


def test_names_stay_text(group):
    hostile = group(HOSTILE, 1.0, 2.0, settings={HOSTILE: HOSTILE})
    with MetricsFile.open(hostile.runs[0].path / "metrics.jsonl") as metrics:
        for step in (1, 2):
            metrics.append(step, {f"eval/probe/{HOSTILE}": 1.0, f"eval/{HOSTILE}/top1": 2.0})
    save_pictures(hostile.runs[0].path, 4, {HOSTILE.replace("/", "-"): np.zeros((2, 2, 3), np.uint8)})
    runs = (RunDirectory.read(hostile.runs[0].path, {"probe": DISPLAY}), hostile.runs[1])
    hostile = dataclasses.replace(hostile, runs=runs)
    _, page = check(Comparison((hostile, group("plain", 3.0, settings={HOSTILE: 1})), (HOSTILE,)))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 5


def test_runs_without_evaluations_pictures_or_times(tmp_path, group):
    (tmp_path / "empty").mkdir()
    empty = Group("empty", (RunDirectory.read(tmp_path / "empty"),), ("empty",), (None,), {"optim.lr": 0.1})
    _, page = check(Comparison((empty,)))
    assert "img" not in page.tags
    _, page = check(Comparison((empty, group("timeless", 1.0, pictures=False, wall=False))))
    assert "not recorded" in page.text
    assert "timeless" in page.text


def test_thirty_groups_are_all_in_the_tables_and_as_many_drawn_as_can_be_told_apart(group):
    groups = tuple(group(f"g{index}-", float(index), settings={"optim.lr": index}) for index in range(30))
    text, page = check(Comparison(groups))
    assert all(f"g{index}-0, step 4" in page.text for index in range(30))
    assert f"Of 30 groups the first {MAX_DRAWN} are drawn" in page.text
    legend = text[text.index('<ul class="legend">') :]
    assert legend[: legend.index("</ul>")].count("<li>") == MAX_DRAWN
    assert len(text) < 3_000_000


def test_pictures_beyond_the_limit_are_left_out_after_one_of_each_group(group, monkeypatch):
    groups = (group("a", 1.0, 2.0, 3.0), group("b", 1.0, 2.0))
    size = next((groups[0].runs[0].path / "pictures").glob("*/*.png")).stat().st_size
    monkeypatch.setattr("umd_eqx.report.comparepage.PICTURE_BYTES", int(2.5 * size))
    _, page = check(Comparison(groups))
    assert page.tags.count("img") == 2
    assert "a0, step 4" in page.text
    assert "b0, step 4" in page.text
    assert "3 more in the run directories" in page.text


def test_settings_are_shown_as_they_would_be_written():
    assert [shown_setting(value) for value in (1e-4, 3, True, None, [0.1, 2.0], [], "adaln")] == [
        *("0.0001", "3", "True", "None", "0.1, 2", "none", "adaln"),
    ]
    assert shown_setting("0123456789abcdef" * 4) == "0123456789ab…"
