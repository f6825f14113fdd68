"""The mean and spread of groups of runs, the best of them, and their curves."""

import json

import numpy as np
import pytest

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.report import RunDirectory
from umd_eqx.report.comparison import (
    UNSET,
    Comparison,
    Group,
    Metric,
    Spread,
    best_groups,
    curve_against,
    main_metrics,
    main_settings,
    mean_curve,
    metrics_of,
    spread,
)

TOP1 = Metric("eval/probe/top1", "higher", True, "probe", False, True)
ERROR = Metric("eval/probe/error", "lower", False, None, False, False)
DISPLAY = Display(
    (Section("", (Chart("error", "", r"(?P<line>e)/t(?P<x>\d)", folded="by time"),)),),
    headline="(?P<line>top1)",
    percent="top1",
    higher="top1",
    lower="error|e/.*",
)


@pytest.fixture
def group(tmp_path):
    def make(name, *values, data="d", settings=None, batch_size=32, rows=()):
        runs = []
        for index, value in enumerate(values):
            folder = tmp_path / f"{name}{index}"
            folder.mkdir()
            found = [*rows, {"step": 9} if value is None else {"step": 9, TOP1.name: value, ERROR.name: 1.0}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
            runs.append(RunDirectory.read(folder, {"probe": DISPLAY}))
        labels = tuple(run.path.name for run in runs)
        return Group(name, tuple(runs), labels, tuple(range(len(runs))), settings or {}, data, batch_size)

    return make


def test_the_spread_is_that_of_numpy_and_a_single_value_has_none():
    values = [1.0, 2.5, 4.0, 9.0]
    found = spread(values)
    assert found == Spread(np.mean(values), np.std(values, ddof=1), 4)
    assert spread([2.0]) == Spread(2.0, None, 1)
    assert spread([]) is None


@pytest.mark.parametrize(
    ("given", "percent", "shown"),
    [
        (Spread(79.84, 0.312, 3), True, "79.84 ± 0.31%"),
        (Spread(79.84, 1.9, 3), True, "79.8 ± 1.9%"),
        (Spread(79.84, None, 1), True, "79.8%"),
        (Spread(0.12345, 0.0021, 2), False, "0.1235 ± 0.0021"),
        (Spread(0.5, 0.0, 2), False, "0.5 ± 0"),
        (Spread(1e30, 1e29, 2), False, "1e+30 ± 1e+29"),
        (Spread(float("nan"), float("nan"), 2), False, "nan"),
    ],
)
def test_as_many_digits_are_shown_as_the_spread_has(given, percent, shown):
    assert given.shown(percent=percent) == shown


def test_the_best_mean_is_marked_by_its_direction_among_runs_on_the_same_images(group):
    # The best single run is not in the best group.
    low, high = group("low", 10.0, 90.0), group("high", 60.0, 61.0)
    assert best_groups(Comparison((low, high)), TOP1) == {"high"}
    assert best_groups(Comparison((low, high)), TOP1._replace(better="lower")) == {"low"}
    assert best_groups(Comparison((low, high)), TOP1._replace(better=None)) == set()
    assert best_groups(Comparison((low, high)), ERROR) == set()  # all are equal
    other = group("other", 99.0, data="other images")
    assert best_groups(Comparison((low, high, other)), TOP1) == {"high"}
    tied = group("tied", 60.5)
    diverged = group("diverged", 70.0, None, rows=[{"step": 1, TOP1.name: 100.0}, {"step": 10, TOP1.name: None}])
    assert best_groups(Comparison((low, high, tied, diverged)), TOP1) == {"high", "tied"}


def test_headlines_come_first_and_points_of_charts_are_folded(group):
    one = group("a", 1.0, rows=[{"step": 1, "eval/probe/e/t1": 1.0, "eval/else/x": 2.0}])
    found = {metric.name: metric for metric in metrics_of(one.runs)}
    assert found["eval/probe/e/t1"].folded
    assert found[TOP1.name] == TOP1._replace(headline="probe top1")
    assert [metric.name for metric in main_metrics(Comparison((one,)))] == [TOP1.name]


def test_settings_that_come_with_a_type_are_left_out_unless_nothing_else_differs(group):
    shared = {"optim": "AdamW", "optim.beta2": 0.9, "optim.lr": 1.0, "eval.probe.shots": 10}
    a = group("a", 1.0, settings=shared)
    b = group("b", 1.0, settings=shared | {"optim": "LARS", "optim.beta2": UNSET})
    assert main_settings(Comparison((a, b))) == ["optim"]
    c = group("c", 1.0, settings=shared | {"eval.probe.shots": 5})
    assert main_settings(Comparison((a, c))) == ["eval.probe.shots"]


def test_curves_against_step_images_and_time(group):
    rows = [
        {"step": 2, "throughput/wall_seconds": 10.0, "eval/probe/z": 1.0},
        {"step": 4, "eval/probe/z": 2.0, "eval/untrained/probe/z": 0.5},
    ]
    (run,) = group("a", 1.0, rows=rows).runs
    assert curve_against(run, "eval/probe/z", "step", 8) == {0: (0, 0.5), 2: (2, 1), 4: (4, 2)}
    assert curve_against(run, "eval/probe/z", "images seen", 8) == {0: (0, 0.5), 2: (16, 1), 4: (32, 2)}
    assert curve_against(run, "eval/probe/z", "images seen", None) == {}
    assert curve_against(run, "eval/probe/z", "wall time", 8) == {0: (0, 0.5), 2: (10, 1)}
    assert mean_curve([{0.0: (0.0, 1.0), 2.0: (4.0, 3.0)}, {2.0: (8.0, 5.0), 4.0: (9.0, 9.0)}]) == {2: (6, 4)}
    assert mean_curve([]) == {}
