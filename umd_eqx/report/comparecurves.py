"""The curves of a comparison: the runs of each group and their mean, against step, images seen and wall time."""

from collections.abc import Sequence
from typing import Any

from umd_eqx.report.comparison import AXES, Axis, Comparison, Group, count_of, curve_against, mean_curve, metrics_of
from umd_eqx.report.curves import SERIES, Line, drawable, running_mean, usual_window
from umd_eqx.report.webcharts import Item, card, legend_list

MAX_DRAWN = 3 * SERIES
"""The number of groups with curves: each colour in three styles."""

MAX_CHARTS = 16
"""The number of metrics with curves."""

_STYLES = ("solid", "dashed", "dotted")
_SIZE = (480, 300)
_AXIS_IDS = dict(zip(AXES, ("step", "images", "time"), strict=True))
_TIMES = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def comparison_curves(comparison: Comparison) -> str:
    """Returns the section with the curves of a comparison as HTML, empty if no metric has two points.

    The loss comes first, then the headlines and other main metrics. The charts are drawn against each of `AXES`; the
    style sheet shows one.

    **Arguments:**

    - `comparison`: the groups of runs.
    """
    groups = comparison.groups[:MAX_DRAWN]
    metrics = metrics_of(run for group in groups for run in group.runs)
    metrics = [metric for metric in metrics if not metric.folded and _has_curve(groups, metric.name)]
    metrics.sort(key=lambda metric: (metric.headline is None, not metric.main, metric.better is None))
    names = [("train/loss", "Loss", "")] if any("train/loss" in run.names() for g in groups for run in g.runs) else []
    names += [(m.name, m.name.removeprefix("eval/"), "percent" if m.percent else "") for m in metrics]
    blocks, any_card = [], False
    for axis in AXES:
        cards = [
            _chart(groups, name, title, unit, axis, f"{_AXIS_IDS[axis]}-{index}")
            for index, (name, title, unit) in enumerate(names[:MAX_CHARTS])
        ]
        any_card = any_card or any(cards)
        nothing = '<p class="note">not recorded</p>\n'
        blocks.append(f'<div class="by by-{_AXIS_IDS[axis]}">\n{"".join(cards) or nothing}</div>\n')
    if not any_card:
        return ""
    buttons = "".join(
        f'<input type="radio" name="axis" id="axis-{key}"{" checked" if key == "step" else ""} />'
        f'<label for="axis-{key}">against {axis}</label>\n'
        for axis, key in _AXIS_IDS.items()
    )
    legend = legend_list([Item(Line(g.name, [], [], i, _style(i)), count_of(g)) for i, g in enumerate(groups)])
    notes = _notes(len(comparison.groups) - len(groups), len(names) - MAX_CHARTS)
    body = f"{buttons}{legend}{''.join(blocks)}{notes}"
    return f'<section class="axes">\n<h2>Curves</h2>\n{body}</section>\n'


def _notes(more_groups: int, more_metrics: int) -> str:
    notes = ["Thin: the runs of a group; thick: their mean at the steps that all of them have."]
    if more_groups > 0:
        notes.append(f"Of {MAX_DRAWN + more_groups} groups the first {MAX_DRAWN} are drawn.")
    if more_metrics > 0:
        notes.append(f"{more_metrics} more metrics are in the tables.")
    notes.append("The loss is smoothed; losses of different objectives differ in scale.")
    return f'<p class="note">{" ".join(notes)}</p>\n'


def _has_curve(groups: Sequence[Group], name: str) -> bool:
    return any(len(run.curve(name)[0]) > 1 for group in groups for run in group.runs)


def _style(index: int) -> Any:
    return _STYLES[index // SERIES % len(_STYLES)]


def _chart(groups: Sequence[Group], name: str, title: str, unit: Any, axis: Axis, slug: str) -> str:
    found = [[curve_against(run, name, axis, group.batch_size) for run in group.runs] for group in groups]
    if name.startswith("train/"):
        found = [[_smoothed(curve) for curve in curves] for curves in found]
    label, scale = axis, 1.0
    if axis == "wall time":
        longest = max((x for curves in found for curve in curves for x, _ in curve.values()), default=0.0)
        scale, unit_name = next((each for each in _TIMES if longest >= each[0]), _TIMES[-1])
        label = f"{axis} in {unit_name}"
    lines = []
    for index, curves in enumerate(found):
        if len(curves) > 1:
            lines += [_line("", curve, index, "thin", scale) for curve in curves]
        shown = mean_curve([curve for curve in curves if curve])
        lines.append(_line(groups[index].name, shown, index, _style(index), scale))
    lines = drawable([line for line in lines if line.x])
    if not lines:
        return ""
    return card(title, lines, slug, _SIZE, (), x_label=label, unit=unit, may_be_log=name == "train/loss")


def _line(label: str, curve: dict[float, tuple[float, float]], series: int, style: Any, scale: float) -> Line:
    points = [curve[step] for step in sorted(curve)]
    return Line(label, [x / scale for x, _ in points], [y for _, y in points], series, style)


def _smoothed(curve: dict[float, tuple[float, float]]) -> dict[float, tuple[float, float]]:
    values = running_mean([y for _, y in curve.values()], usual_window(len(curve)))
    return {step: (x, y) for (step, (x, _)), y in zip(curve.items(), values, strict=True)}
