"""The page of a comparison: a single self-contained HTML file."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from umd_eqx.report.comparecurves import comparison_curves
from umd_eqx.report.comparison import (
    Comparison,
    Group,
    Metric,
    best_groups,
    count_of,
    main_metrics,
    main_settings,
    metrics_of,
    spread,
)
from umd_eqx.report.pictures import captions, figure, picture_files, read_picture
from umd_eqx.report.rundir import RunDirectory
from umd_eqx.report.terminal import duration
from umd_eqx.report.webpage import PICTURE_BYTES, document

_BEST = ' class="best"'

_STYLE = """\
.compare table { table-layout: auto; width: auto; min-width: 0; }
.compare thead th, .compare thead th:first-child { width: auto; }
.compare tbody td:nth-child(3) { font-weight: 400; }
.compare tbody td.best { font-weight: 700; }
.compare td, .compare th { vertical-align: top; }
.compare th:first-child { overflow: visible; position: sticky; left: 0; background: var(--page); padding-right: 12px; }
.notes { margin: 16px 0 0; padding-left: 20px; }
.axes input { position: absolute; opacity: 0; }
.axes label { display: inline-block; margin: 0 16px 8px 0; padding: 2px 0; color: var(--muted); cursor: pointer; }
.axes input:checked + label { color: var(--ink); border-bottom: 2px solid var(--series-0); }
.axes input:focus-visible + label { outline: 2px solid var(--series-0); }
.axes > .legend { position: sticky; top: 0; background: var(--page); padding: 8px 0; margin: 0; }
.swatch.dotted { border-top: 3px dotted; }
.by { display: none; gap: 32px 24px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
#axis-step:checked ~ .by-step, #axis-images:checked ~ .by-images, #axis-time:checked ~ .by-time { display: grid; }
.beside { display: grid; gap: 20px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.beside img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 2px; }
.beside figcaption { margin-top: 6px; overflow-wrap: anywhere; }
"""


def comparison_page(comparison: Comparison) -> bytes:
    """Returns the page of a comparison, without external resources, for light and dark mode.

    **Arguments:**

    - `comparison`: the groups of runs; anything that a run lacks is left out.
    """
    parts = (
        _header(comparison),
        _settings(comparison),
        _results(comparison),
        comparison_curves(comparison),
        _pictures(comparison),
        _runs(comparison),
    )
    title = "Comparison: " + ", ".join(group.name for group in comparison.groups[:4])
    return document(title, ['<div class="compare">\n', *parts, "</div>\n"], _STYLE)


def shown_setting(value: Any) -> str:
    """Returns a setting as text.

    **Arguments:**

    - `value`: plain data from a configuration.
    """
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(shown_setting, value)) or "none"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def shown_result(group: Group, metric: Metric) -> str:
    """Returns the mean and spread of a metric in a group as text; `-` if it was not measured.

    **Arguments:**

    - `group`, `metric`: the group and the metric.
    """
    found = spread(group.finals(metric.name))
    if found is None:
        return "-"
    missing = f" (n = {found.n})" if found.n < len(group.runs) else ""
    return found.shown(percent=metric.percent) + missing


def _header(comparison: Comparison) -> str:
    count, groups = len(comparison.runs), len(comparison.groups)
    title = f"{count} {'run' if count == 1 else 'runs'}" + (f" in {groups} groups" if groups < count else "")
    names = "".join(f"<div><dt>{escape(count_of(g))}</dt><dd>{escape(g.name)}</dd></div>\n" for g in comparison.groups)
    notes = "".join(f'<li class="note">{escape(note)}</li>\n' for note in comparison.notes)
    listed = f'<ul class="notes">\n{notes}</ul>\n' if notes else ""
    return f'<header>\n<p class="kicker">comparison</p>\n<h1>{title}</h1>\n<dl>\n{names}</dl>\n{listed}</header>\n'


def _settings(comparison: Comparison) -> str:
    groups = comparison.groups
    names = list(groups[0].settings)
    if not names:
        note = "The recipes are the same." if len(groups) == 1 and len(comparison.runs) > 1 else ""
        return f'<section>\n<h2>Settings that differ</h2>\n<p class="note">{note}</p>\n</section>\n' if note else ""
    main = main_settings(comparison)
    others = [name for name in names if name not in main]
    tables = [
        _table(["", *some], [[group.name, *(shown_setting(group.settings[name]) for name in some)] for group in groups])
        for some in (main, others)
    ]
    told = "that come with the type of a part, and of the evaluations"
    folded = f"<details>\n<summary>{len(others)} more, {told}</summary>\n{tables[1]}</details>\n" if others else ""
    return f"<section>\n<h2>Settings that differ</h2>\n{tables[0]}{folded}</section>\n"


def _results(comparison: Comparison) -> str:
    metrics = metrics_of(comparison.runs)
    if not metrics:
        return ""
    parts = []
    main = main_metrics(comparison)
    titles = [metric.headline or metric.name.removeprefix("eval/") for metric in main]
    parts.append(_metric_table(comparison, main, titles) if main else "")
    for evaluation in dict.fromkeys(metric.evaluation for metric in metrics):
        some = [metric for metric in metrics if metric.evaluation == evaluation]
        table = _metric_table(comparison, some, [metric.number for metric in some])
        parts.append(f"<details>\n<summary>{escape(evaluation)}, all metrics</summary>\n{table}</details>\n")
    note = (
        "The last value of each run; mean ± sample standard deviation over the seeds of a group. "
        "Bold: the best mean among groups on the same images."
    )
    return f'<section>\n<h2>Results</h2>\n{"".join(parts)}<p class="note">{note}</p>\n</section>\n'


def _metric_table(comparison: Comparison, metrics: Sequence[Metric], titles: Sequence[str]) -> str:
    best = {metric.name: best_groups(comparison, metric) for metric in metrics}
    groups = [group for group in comparison.groups if any(group.finals(metric.name) for metric in metrics)]
    rows = [[group.name, *(shown_result(group, metric) for metric in metrics)] for group in groups]
    marks = [[group.name in best[metric.name] for metric in metrics] for group in groups]
    arrows = {"higher": " ↑", "lower": " ↓", None: ""}
    head = [title + arrows[metric.better] for title, metric in zip(titles, metrics, strict=True)]
    return _table(["", *head], rows, marks)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[Sequence[bool]] = ()) -> str:
    columns = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    lines = []
    for index, (first, *cells) in enumerate(rows):
        marks = best[index] if best else [False] * len(cells)
        told = zip(cells, (_BEST * mark for mark in marks), strict=True)
        body = "".join(f"<td{mark}>{escape(cell)}</td>" for cell, mark in told)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{body}</tr>\n')
    body = f"<thead>\n<tr>{columns}</tr>\n</thead>\n<tbody>\n{''.join(lines)}</tbody>"
    return f'<div class="scroll">\n<table>\n{body}\n</table>\n</div>\n'


def _pictures(comparison: Comparison) -> str:
    # The first run of each group comes first: it is what remains where the limit on the size of the page is reached.
    everyone = [(group.labels[i], run, i) for group in comparison.groups for i, run in enumerate(group.runs)]
    newest = {label: {name: paths[-1] for name, paths in picture_files(run).items()} for label, run, _ in everyone}
    names = list(dict.fromkeys(name for found in newest.values() for name in found))
    room, left_out = PICTURE_BYTES, 0
    shown: dict[tuple[str, str], str] = {}
    texts: dict[str, str] = {}
    for label, run, _ in sorted(everyone, key=lambda one: one[2]):
        texts = captions(run) | texts
        for name, path in newest[label].items():
            picture = read_picture(path)
            if picture is None:
                continue
            if len(picture.data) > room:
                left_out += 1
                continue
            room -= len(picture.data)
            shown[name, label] = figure(picture, f"{label}, step {picture.step:,}")
    blocks = []
    for name in names:
        figures = "".join(shown[name, label] for label, _, _ in everyone if (name, label) in shown)
        if figures:
            caption = escape(texts.get(name, name))
            blocks.append(f'<h3>{caption}</h3>\n<div class="beside">\n{figures}</div>\n')
    if not blocks:
        return ""
    note = f'<p class="note">{left_out:,} more in the run directories.</p>\n' if left_out else ""
    return f"<section>\n<h2>Pictures</h2>\n{''.join(blocks)}{note}</section>\n"


def _runs(comparison: Comparison) -> str:
    head = ["", "group", "seed", "step", "images seen", "wall time", "parameters", "device", "directory"]
    rows = []
    for group in comparison.groups:
        for label, run, seed in zip(group.labels, group.runs, group.seeds, strict=True):
            rows.append([label, group.name, *_facts(run, seed, group.batch_size), str(run.path)])
    return f"<section>\n<h2>Runs</h2>\n{_table(head, rows)}</section>\n"


def _facts(run: RunDirectory, seed: int | None, batch_size: int | None) -> list[str]:
    step, steps, wall = (
        (run.rows[-1]["step"] if run.rows else 0),
        run.count("steps"),
        run.last("throughput/wall_seconds"),
    )
    parameters, device, devices = run.count("parameters"), run.fact("device"), run.count("devices")
    return [
        "-" if seed is None else str(seed),
        f"{step:,}" + (f" of {steps:,}" if steps is not None and step < steps else ""),
        "-" if batch_size is None else f"{step * batch_size:,}",
        "-" if wall is None or not math.isfinite(wall) else duration(max(0.0, wall)),
        "-" if parameters is None else f"{parameters:,}",
        "-" if device is None else f"{devices or 1} x {device}",
    ]
