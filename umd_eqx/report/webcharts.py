"""The sections of the page of a run that show metrics: pure functions of the run, empty without metrics."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple

from umd_eqx.core.display import Chart, Section
from umd_eqx.report.curves import SERIES, Line, chart, drawable, running_mean, sparkline, usual_window
from umd_eqx.report.rundir import RunDirectory, number

_TITLES = {
    "train/lr": "Learning rate",
    "train/grad_norm": "Gradient norm",
    "throughput/images_per_s": "Images per second",
    "throughput/mfu": "Share of peak FLOP/s",
    "throughput/data_wait": "Share of time waiting for data",
}
_SHARES = ("throughput/mfu", "throughput/data_wait")
_WIDE, _MAIN, _SIDE, _SMALL = (1000, 360), (600, 360), (400, 360), (320, 210)
_MAX_PANELS = 18
_HEADLINE = " (headline)"


class Item(NamedTuple):
    """An entry of a legend: its line, and a value that follows the line's label, which may be empty."""

    line: Line
    value: str


def sections(run: RunDirectory, *, leading: bool) -> str:
    """Returns the charts defined by the evaluations of a run (`umd_eqx.core.display.Section`).

    **Arguments:**

    - `run`: the run.
    - `leading`: whether to return the sections before the training curves, or those after them.
    """
    return "".join(
        _section(run, evaluation, section)
        for evaluation, display in run.displays.items()
        for section in display.sections
        if section.leading == leading
    )


def _section(run: RunDirectory, evaluation: str, section: Section) -> str:
    display = run.display(evaluation)
    drawn = [(one, *found) for one in section.charts if (found := _drawn(run, evaluation, one))]
    if not drawn:
        return ""
    sizes = (_MAIN, _SIDE) if len(drawn) == 2 else (_WIDE,) * len(drawn)
    cards = [
        card(title, lines, f"{_slug(evaluation)}-{one.name}", size, legend, x_label=one.x_label, unit=one.unit)
        for (one, title, lines, legend, _), size in zip(drawn, sizes, strict=True)
    ]
    every = [line for _, _, lines, _, _ in drawn for line in lines]
    steps = [f"At step {step:,}." for one, *_, step in drawn if one.against_x]
    marked = any(line.label.endswith(_HEADLINE) for line in every)
    level = any(line.style == "dashed" for line in every)
    parts = [section.headline_note * marked, section.note, section.baseline_note * level, *dict.fromkeys(steps)]
    notes = [escape(" ".join(part for part in parts if part))]
    numbers = run.evaluations().get(evaluation, [])
    if display.warning and any(re.fullmatch(display.warned or "", number) for number in numbers):
        notes.append(f"Warning: {escape(display.warning)}.")
    text = "".join(f'<p class="note">{note}</p>\n' for note in notes if note)
    columns = "headline two" if len(drawn) == 2 else "headline"
    charts = f'<div class="{columns}">\n{"".join(cards)}</div>\n'
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{charts}{text}</section>\n"


def _drawn(run: RunDirectory, evaluation: str, asked: Chart) -> tuple[str, list[Line], list[Item], int] | None:
    """Returns title, lines, legend and last step of a chart, or None if there is nothing to draw."""
    prefix = f"eval/{evaluation}/"
    found = {
        f"{prefix}{number}": match
        for number in run.evaluations().get(evaluation, [])
        if (match := re.fullmatch(asked.pattern, number))
    }
    step, lines = _against_x(run, found) if asked.against_x else (0, _against_steps(run, evaluation, found, asked))
    lines = drawable(lines)
    if not lines:
        return None
    title = asked.title.format(**next(iter(found.values())).groupdict())
    values = {"percent": "{:.1f}%", "share": "{:.3g}", "": "{:.3g}"}[asked.unit]
    legend = [Item(line, "" if asked.against_x else values.format(_last(line))) for line in lines if line.label]
    return title, lines, legend, step


def _against_x(run: RunDirectory, found: Mapping[str, re.Match[str]]) -> tuple[int, list[Line]]:
    """Returns the last step with such metrics, and their lines as functions of the numbers in their names."""
    row = next((row for row in reversed(run.rows) if any(name in row for name in found)), {"step": 0})
    points: dict[str, list[tuple[float, float]]] = {}
    for name, match in found.items():
        if name in row:
            points.setdefault(match["line"], []).append((float(match["x"]), number(row[name])))
    lines = []
    for series, (label, some) in enumerate(points.items()):
        x, y = zip(*sorted(some), strict=True)
        lines.append(Line(label, x, y, series))
    return row["step"], lines


def _against_steps(run: RunDirectory, evaluation: str, found: Mapping[str, re.Match[str]], asked: Chart) -> list[Line]:
    display, headlines = run.display(evaluation), run.headlines()
    chosen = display.headline_of(run.evaluations().get(evaluation, []))
    # The line of the headline comes first, and therefore has the same colour in each chart.
    ordered = sorted(found.items(), key=lambda item: chosen is None or item[1]["line"] != chosen[1])
    end = float(max(row["step"] for row in run.rows)) if run.rows else 0.0
    lines, levels = [], []
    for name, match in ordered:
        x, y = run.curve(name)
        label = match["line"].replace("_", " ")
        if display.is_baseline(match["line"]):
            if y and math.isfinite(y[-1]):
                levels.append(Line(label, [0.0, end], [y[-1]] * 2, None, "dashed"))
            continue
        lines.append(Line(label + _HEADLINE * (name in headlines), x, y, len(lines)))
        if asked.first_as_level and x[0] == 0 and len(x) > 1:
            levels.append(Line("", [0.0, end], [y[0]] * 2, lines[-1].series, "dotted"))
    return [*lines, *levels]


def training(run: RunDirectory) -> str:
    """Returns the charts of loss, learning rate, gradient norm, throughput and all other metrics of training.

    **Arguments:**

    - `run`: the run.
    """
    names = [name for name in run.names() if not name.startswith("eval/") and name != "throughput/wall_seconds"]
    # Skipped steps are shown only if there are any.
    names = [name for name in names if not name.startswith("train/skipped") or any(run.curve(name)[1])]
    losses = sorted((name for name in names if re.fullmatch("train/.*loss.*", name)), key=lambda n: n != "train/loss")
    cards = []
    lines, legend = [], []
    for series, name in enumerate(losses):
        x, y = run.curve(name)
        label = name.removeprefix("train/").replace("_", " ")
        line = Line(label, x, running_mean(y, usual_window(len(y))), series)
        if drawable([line]):
            lines += [Line("", x, y, series, "raw"), line]
            legend.append(Item(line, f"{_last(line):.4g}"))
    if lines:
        cards.append(f'<div class="headline">\n{card("Loss", lines, "loss", _WIDE, legend, may_be_log=True)}</div>\n')
    small = []
    ordered = [*(name for name in _TITLES if name in names), *(n for n in names if n not in _TITLES)]
    for index, name in enumerate([name for name in ordered if name not in losses][:_MAX_PANELS]):
        x, y = run.curve(name)
        steady = name == "train/lr"
        window = usual_window(len(y))
        lines = [Line("", x, y, 0)] if steady else [Line("", x, y, 0, "raw"), Line("", x, running_mean(y, window), 0)]
        if drawable(lines):
            title = _TITLES.get(name, name)
            small.append(card(title, lines, f"small-{index}", _SMALL, (), unit="share" if name in _SHARES else ""))
    if small:
        cards.append(f'<div class="small">\n{"".join(small)}</div>\n')
    return f"<section>\n<h2>Training</h2>\n{''.join(cards)}</section>\n" if cards else ""


def evaluations(run: RunDirectory) -> str:
    """Returns tables of all evaluation metrics, with first value, last value and trend.

    **Arguments:**

    - `run`: the run.
    """
    groups: dict[str, list[str]] = {}
    folded: dict[str, tuple[str, list[str]]] = {}
    for name in run.names():
        if not name.startswith("eval/"):
            continue
        x, y = run.curve(name)
        group, _, rest = name.removeprefix("eval/").partition("/")
        first = shown_value(run, name, y[0]) if len(y) > 1 else ""
        cells = (first, shown_value(run, name, y[-1]), f"{x[-1]:,.0f}", sparkline(y))
        line = f'<tr><th scope="row">{escape(rest or group)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        # Metrics that a chart shows as a function of numbers in their names are folded: they would bury the others.
        if (title := _folded(run, group, rest)) is not None:
            folded.setdefault(title, (group, []))[1].append(line)
        else:
            groups.setdefault(group, []).append(line)
    parts = [_table(group, rows) for group, rows in groups.items()]
    for title, (group, rows) in folded.items():
        parts.append(f"<details>\n<summary>{escape(title)}</summary>\n{_table(group, rows)}</details>\n")
    if any("[" in group for group in groups):
        note = "In brackets: the settings of evaluations that were repeated after the end of the run."
        parts.append(f'<p class="note">{note}</p>\n')
    return f"<section>\n<h2>Evaluation</h2>\n{''.join(parts)}</section>\n" if parts else ""


def _table(title: str, rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{text}</th>' for text in (escape(title), "first", "last", "at step", "trend"))
    body = f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{''.join(rows)}</tbody>"
    return f'<div class="scroll">\n<table>\n{body}\n</table>\n</div>\n'


def _folded(run: RunDirectory, evaluation: str, number: str) -> str | None:
    """Returns the title under which a metric is folded, or None if it is not folded."""
    for section in run.display(evaluation).sections:
        for one in section.charts:
            if one.folds(number):
                again = evaluation.partition("[")
                return f"{section.title}{again[1]}{again[2]}, {one.folded}"
    return None


def shown_value(run: RunDirectory, name: str, value: float) -> str:
    """Formats a metric of an evaluation for the page."""
    if not math.isfinite(value):
        return "nan"
    evaluation, _, number = name.removeprefix("eval/").partition("/")
    return f"{value:.1f}%" if run.display(evaluation).is_percent(number) else f"{value:.4g}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)


def _last(line: Line) -> float:
    return next(value for value in reversed(line.y) if math.isfinite(value))


def card(
    title: str,
    lines: Sequence[Line],
    name: str,
    size: tuple[int, int],
    legend: Sequence[Item],
    *,
    x_label: str = "step",
    unit: Literal["", "percent", "share"] = "",
    may_be_log: bool = False,
) -> str:
    """Returns a chart with title and legend, as HTML.

    **Arguments:**

    - `title`: plain text.
    - `lines`, `name`, `size`, `x_label`, `unit`: as for `umd_eqx.report.curves.chart`.
    - `legend`: the entries of the legend; there is none if it is empty.
    - `may_be_log`: whether the vertical axis is logarithmic if the values have a large range.
    """
    values = [value for line in lines for value in line.y if math.isfinite(value)]
    log = may_be_log and min(values) > 0 and max(values) > 8 * min(values)
    svg = chart(lines, title=escape(title), name=name, size=size, x_label=x_label, unit=unit, log=log)
    key = legend_list(legend)
    kind = "chart wide" if size == _WIDE else "chart"
    return f'<figure class="{kind}">\n<figcaption>{escape(title)}</figcaption>\n{key}{svg}\n</figure>\n'


def legend_list(legend: Sequence[Item]) -> str:
    """Returns a legend as HTML, empty without entries.

    **Arguments:**

    - `legend`: the entries.
    """
    entries = "".join(
        f'<li><span class="swatch {line.style} s{"t" if line.series is None else line.series % SERIES}"></span>'
        f"{escape(line.label)}{f' <b>{escape(value)}</b>' if value else ''}</li>\n"
        for line, value in legend
    )
    return f'<ul class="legend">\n{entries}</ul>\n' if entries else ""
