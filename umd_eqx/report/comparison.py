"""Several runs side by side: groups of runs that differ only in the seed, and the mean and spread of their metrics."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from umd_eqx.report.rundir import RunDirectory

UNSET = "–"
"""The value of a setting that a group's recipe does not have, because one of its parts has another type."""

AXES = ("step", "images seen", "wall time")
"""What curves may be drawn against."""

Axis = Literal["step", "images seen", "wall time"]


@dataclass(frozen=True)
class Group:
    """Runs whose recipes differ only in the seed.

    - `name`: unique in its comparison.
    - `runs`, `labels`, `seeds`: the runs, and for each its label, unique in the comparison, and its seed.
    - `settings`: the settings that are not the same in all groups of the comparison, by dotted name.
    - `data`: a key of the images, equal for equal images.
    - `batch_size`: images per step, or None if it is not known.
    - `recipe`: the recorded configuration of the first run.
    """

    name: str
    runs: tuple[RunDirectory, ...]
    labels: tuple[str, ...]
    seeds: tuple[int | None, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    batch_size: int | None = None
    recipe: Any = None

    def finals(self, metric: str) -> list[float]:
        """Returns the last value of a metric in each run that has it; NaN where it was not finite.

        **Arguments:**

        - `metric`: the whole name of the metric.
        """
        return [values[-1] for run in self.runs if (values := run.curve(metric)[1])]


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, in the order in which they were named, and what should be known of them, in lines of text."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> list[RunDirectory]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]


class Spread(NamedTuple):
    """The mean of `n` values, and their sample standard deviation (n - 1); None for a single value."""

    mean: float
    std: float | None
    n: int

    def shown(self, *, percent: bool) -> str:
        """Returns the mean and, after ±, the standard deviation to two significant digits.

        **Arguments:**

        - `percent`: whether the values are percentages.
        """
        unit = "%" if percent else ""
        if not math.isfinite(self.mean):
            return "nan"
        if not self.std:
            plain = f"{self.mean:.1f}%" if percent else f"{self.mean:.4g}"
            return plain if self.std is None else f"{plain} ± 0{unit}"
        digits = 1 - math.floor(math.log10(self.std))
        if percent:
            digits = min(max(digits, 1), 2)
        if not 0 <= digits <= 6:
            return f"{self.mean:.4g} ± {self.std:.2g}{unit}"
        return f"{self.mean:.{digits}f} ± {self.std:.{digits}f}{unit}"


class Metric(NamedTuple):
    """A metric of an evaluation.

    - `name`: the whole name, `eval/<evaluation>/<number>`.
    - `better`: which values are better, or None if it is not known or the metric does not depend on the network.
    - `percent`: whether it is a percentage.
    - `headline`: the description of the metric if it is the headline of its evaluation in some run, otherwise None.
    - `folded`: whether it is one of many points of a chart, such as an error at one noise level.
    - `main`: whether it is a headline or, in an evaluation without one, drawn in a chart, or else of a known direction.
    """

    name: str
    better: Literal["higher", "lower"] | None
    percent: bool
    headline: str | None
    folded: bool
    main: bool

    @property
    def evaluation(self) -> str:
        """The name of the evaluation."""
        return self.name.removeprefix("eval/").partition("/")[0]

    @property
    def number(self) -> str:
        """The name of the metric within its evaluation."""
        return self.name.removeprefix("eval/").partition("/")[2]


def spread(values: Sequence[float]) -> Spread | None:
    """Returns the mean and spread of values, or None if there are none.

    **Arguments:**

    - `values`: one for each run.
    """
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


def count_of(group: Group) -> str:
    """Returns the seed of a group of one run, or the number of its runs, as text.

    **Arguments:**

    - `group`: the group.
    """
    if len(group.runs) == 1:
        return "one run" if group.seeds[0] is None else f"seed {group.seeds[0]}"
    return f"{len(group.runs)} {'seeds' if len(set(group.seeds)) == len(group.runs) else 'runs'}"


def metrics_of(runs: Iterable[RunDirectory]) -> list[Metric]:
    """Returns the metrics of all evaluations of some runs, in the order of their first occurrence.

    **Arguments:**

    - `runs`: the runs.
    """
    found: dict[str, Metric] = {}
    for run in runs:
        headlines = run.headlines()
        for evaluation, numbers in run.evaluations().items():
            display = run.display(evaluation)
            for number in numbers:
                name = f"eval/{evaluation}/{number}" if number else f"eval/{evaluation}"
                baseline = display.is_baseline(number.partition("/")[0])
                charts = [chart for section in display.sections for chart in section.charts]
                folded = any(chart.folds(number) for chart in charts)
                better = None if baseline else display.better(number)
                drawn = any(re.fullmatch(chart.pattern, number) for chart in charts)
                main = name in headlines if display.headline else better is not None and (drawn or not charts)
                known = found.get(name)
                found[name] = Metric(
                    name,
                    better or (known and known.better),
                    display.is_percent(number) or bool(known and known.percent),
                    headlines.get(name) or (known and known.headline),
                    folded or bool(known and known.folded),
                    (main and not folded) or bool(known and known.main),
                )
    return list(found.values())


def main_metrics(comparison: Comparison) -> list[Metric]:
    """Returns the metrics that sum up a comparison, headlines first: main ones that several groups have, if any.

    **Arguments:**

    - `comparison`: the groups.
    """
    metrics = metrics_of(comparison.runs)
    counts = {metric.name: sum(bool(group.finals(metric.name)) for group in comparison.groups) for metric in metrics}
    least = min(2, len(comparison.groups))
    main = [metric for metric in metrics if metric.main]
    chosen = [metric for metric in main if counts[metric.name] >= least] or main
    chosen = chosen or [metric for metric in metrics if metric.better is not None]
    return sorted(chosen, key=lambda metric: metric.headline is None)


def main_settings(comparison: Comparison) -> list[str]:
    """Returns the names of the settings by which a comparison is read.

    These are settings that differ between recipes with the same types. Those that only some recipes have, because one
    of their parts has another type, follow from the type, and are left out unless the groups differ in nothing else.
    So are those of the evaluations.

    **Arguments:**

    - `comparison`: the groups.
    """
    groups = comparison.groups
    names = list(groups[0].settings)

    def told(name: str) -> bool:
        values = [group.settings[name] for group in groups if group.settings[name] != UNSET]
        return any(value != values[0] for value in values)

    def apart(names: Sequence[str]) -> bool:
        return len({repr([group.settings[name] for name in names]) for group in groups}) == len(groups)

    shared = [name for name in names if told(name)]
    trained = [name for name in shared if not name.startswith("eval.")]
    return next((some for some in (trained, shared) if apart(some)), names)


def best_groups(comparison: Comparison, metric: Metric) -> set[str]:
    """Returns the names of the groups with the best mean of a metric, ties included.

    Groups are compared with those on the same images. A group that is compared with no other is not among the best, and
    neither are equal groups.

    **Arguments:**

    - `comparison`: the groups.
    - `metric`: one of their metrics.
    """
    if metric.better is None:
        return set()
    comparable: dict[str, dict[str, float]] = {}
    for group in comparison.groups:
        found = spread(group.finals(metric.name))
        if found is not None and math.isfinite(found.mean):
            comparable.setdefault(group.data, {})[group.name] = found.mean
    best: set[str] = set()
    for means in comparable.values():
        if len(set(means.values())) > 1:
            top = (max if metric.better == "higher" else min)(means.values())
            best |= {name for name, mean in means.items() if mean == top}
    return best


def curve_against(run: RunDirectory, name: str, axis: Axis, batch_size: int | None) -> dict[float, tuple[float, float]]:
    """Returns the points (x, y) of a curve by step. Points whose x is not known are left out.

    **Arguments:**

    - `run`, `name`: the run and the metric.
    - `axis`: what x is; wall time is in seconds.
    - `batch_size`: images per step.
    """
    steps, values = run.curve(name)
    if axis == "step":
        xs: Sequence[float | None] = steps
    elif axis == "images seen":
        xs = [None if batch_size is None else step * batch_size for step in steps]
    else:
        seconds = run.curve("throughput/wall_seconds")
        at = dict(zip(*seconds, strict=True)) | {0.0: 0.0}
        xs = [at.get(step) for step in steps]
    return {step: (x, y) for step, x, y in zip(steps, xs, values, strict=True) if x is not None and math.isfinite(x)}


def mean_curve(curves: Sequence[Mapping[float, tuple[float, float]]]) -> dict[float, tuple[float, float]]:
    """Returns the mean of x and y at the steps that all curves have, by step.

    **Arguments:**

    - `curves`: as returned by `curve_against`.
    """
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    points = {step: np.mean([curve[step] for curve in curves], axis=0) for step in common}
    return {step: (float(x), float(y)) for step, (x, y) in points.items()}
