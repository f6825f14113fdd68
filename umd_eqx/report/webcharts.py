"""The sections of a run's page that show its numbers: each a pure function of the run, empty where it has none."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple

from umd_eqx.report.curves import SERIES, Line, chart, drawable, smooth, sparkline, usual_window
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
_MOST_PANELS = 18
_HEADLINE = " (headline)"
_NOISE_LEVEL = re.compile(r"eval/denoising/(.+)/t([0-9]*\.?[0-9]+)")


class _Item(NamedTuple):
    """An entry of a legend."""

    line: Line
    value: str


def probes(run: RunDirectory) -> str:
    """The headline: accuracy of the probes against the step, few-shot and nearest neighbours.

    **Arguments:**

    - `run`: the run.
    """
    kinds = (
        ("fewshot", "Few-shot linear probe, top-1", r"eval/fewshot/(.+)/top1"),
        ("knn", "Nearest neighbours, top-1", r"eval/fewshot/(.+)/knn"),
    )
    present = [(kind, title, lines) for kind, title, pattern in kinds if (lines := _probe_lines(run, pattern))]
    if not present:
        return ""
    sizes = (_MAIN, _SIDE) if len(present) == 2 else (_WIDE,)
    cards = []
    for (kind, title, lines), size in zip(present, sizes, strict=True):
        legend = [_Item(line, f"{_last(line):.1f}%") for line in lines if line.label]
        cards.append(_card(title, lines, f"probe-{kind}", size, legend, unit="percent"))
    note = "Dotted: the same features before training (step 0)."
    if any(line.label.endswith(_HEADLINE) for _, _, lines in present for line in lines):
        note = (
            "The headline is the kind of features that the configuration names; the others are for comparison, and the "
            f"best of them would be a choice made on the test images. {note}"
        )
    if any(line.style == "dashed" for _, _, lines in present for line in lines):
        note += " Dashed: a probe of the raw pixels."
    columns = "headline two" if len(present) == 2 else "headline"
    return (
        "<section>\n<h2>Probe accuracy</h2>\n"
        f'<div class="{columns}">\n{"".join(cards)}</div>\n<p class="note">{note}</p>\n</section>\n'
    )


def _probe_lines(run: RunDirectory, pattern: str) -> list[Line]:
    headlines = run.headlines()
    first = {name.removeprefix("eval/fewshot/").removesuffix("/top1") for name in headlines}
    probed = {name: match[1] for name in run.names() if (match := re.fullmatch(pattern, name))}
    # The headline's kind of features comes first in each chart, so that it has one colour.
    probed = dict(sorted(probed.items(), key=lambda item: item[1] not in first))
    end = float(max(row["step"] for row in run.rows)) if run.rows else 0.0
    lines, levels = [], []
    for name, feature in probed.items():
        x, y = run.curve(name)
        label = feature.replace("_", " ")
        if feature.split("/")[-1].startswith("raw_pixels"):
            if y and math.isfinite(y[-1]):
                levels.append(Line(label, [0.0, end], [y[-1]] * 2, None, "dashed"))
            continue
        lines.append(Line(label + _HEADLINE * (name in headlines), x, y, len(lines)))
        if x[0] == 0 and len(x) > 1:
            levels.append(Line("", [0.0, end], [y[0]] * 2, lines[-1].series, "dotted"))
    return drawable([*lines, *levels])


def training(run: RunDirectory) -> str:
    """Loss, learning rate, gradient norm, throughput, and whatever else the training wrote.

    **Arguments:**

    - `run`: the run.
    """
    names = [name for name in run.names() if not name.startswith("eval/") and name != "throughput/wall_seconds"]
    # Only where there is something to see: most runs skip no step.
    names = [name for name in names if not name.startswith("train/skipped") or any(run.curve(name)[1])]
    losses = sorted((name for name in names if re.fullmatch("train/.*loss.*", name)), key=lambda n: n != "train/loss")
    cards = []
    lines, legend = [], []
    for series, name in enumerate(losses):
        x, y = run.curve(name)
        label = name.removeprefix("train/").replace("_", " ")
        line = Line(label, x, smooth(y, usual_window(len(y))), series)
        if drawable([line]):
            lines += [Line("", x, y, series, "raw"), line]
            legend.append(_Item(line, f"{_last(line):.4g}"))
    if lines:
        cards.append(f'<div class="headline">\n{_card("Loss", lines, "loss", _WIDE, legend)}</div>\n')
    small = []
    ordered = [*(name for name in _TITLES if name in names), *(n for n in names if n not in _TITLES)]
    for index, name in enumerate([name for name in ordered if name not in losses][:_MOST_PANELS]):
        x, y = run.curve(name)
        steady = name == "train/lr"
        window = usual_window(len(y))
        lines = [Line("", x, y, 0)] if steady else [Line("", x, y, 0, "raw"), Line("", x, smooth(y, window), 0)]
        if drawable(lines):
            title = _TITLES.get(name, name)
            small.append(_card(title, lines, f"small-{index}", _SMALL, (), unit="share" if name in _SHARES else ""))
    if small:
        cards.append(f'<div class="small">\n{"".join(small)}</div>\n')
    return f"<section>\n<h2>Training</h2>\n{''.join(cards)}</section>\n" if cards else ""


def denoising(run: RunDirectory) -> str:
    """The error of each head against the noise level, at the last evaluation.

    **Arguments:**

    - `run`: the run.
    """
    heads: dict[str, list[tuple[float, float]]] = {}
    step = 0
    for row in reversed(run.rows):
        found = [(match, number(value)) for name, value in row.items() if (match := _NOISE_LEVEL.fullmatch(name))]
        if not found:
            continue
        step = row["step"]
        for match, value in found:
            heads.setdefault(match[1], []).append((float(match[2]), value))
        break
    lines = []
    for series, (head, points) in enumerate(heads.items()):
        times, errors = zip(*sorted(points), strict=True)
        lines.append(Line(head, times, errors, series))
    lines = drawable(lines)
    if not lines:
        return ""
    legend = [_Item(line, "") for line in lines]
    card = _card("Squared error", lines, "denoising", _WIDE, legend, x_label="noise level t  (0 clean, 1 noise)")
    return (
        f'<section>\n<h2>Denoising</h2>\n<div class="headline">\n{card}</div>\n'
        f'<p class="note">At step {step:,}.</p>\n</section>\n'
    )


def generation(run: RunDirectory) -> str:
    """How far samples are from real images, and how many are of the class asked for, by guidance, against the step.

    **Arguments:**

    - `run`: the run.
    """
    cards = []
    for kind, title, pattern in (
        ("distance", "Distance of the samples from real images", r"eval/generation/(.+)/(cfg[0-9.]+)/(fid|fd_\w+)"),
        ("recognised", "Samples recognised as the class asked for", r"eval/generation/(.+)/(cfg[0-9.]+)/(recognised)"),
    ):
        found = {name: match for name in run.names() if (match := re.fullmatch(pattern, name))}
        lines = drawable([Line(match[2], *run.curve(name), i) for i, (name, match) in enumerate(found.items())])
        if lines:
            first = next(iter(found.values()))
            legend = [_Item(line, f"{_last(line):.3g}") for line in lines]
            unit = "share" if kind == "recognised" else ""
            title = f"{title} ({first[3]}, {first[1]})" if kind == "distance" else title
            cards.append((title, lines, f"generation-{kind}", legend, unit))
    if not cards:
        return ""
    sizes = (_MAIN, _SIDE) if len(cards) == 2 else (_WIDE,)
    charts = [
        _card(title, lines, name, size, legend, unit=unit)
        for (title, lines, name, legend, unit), size in zip(cards, sizes, strict=True)
    ]
    columns = "headline two" if len(cards) == 2 else "headline"
    note = _unfamiliar(run)
    return f'<section>\n<h2>Generation</h2>\n<div class="{columns}">\n{"".join(charts)}</div>\n{note}</section>\n'


def _unfamiliar(run: RunDirectory) -> str:
    """The warning of `umd_eqx.eval.extractors.unfamiliar`, where its numbers are shown."""
    data = run.fact("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    scored = any(re.fullmatch(r"eval/generation/.+/fd_fashion", number) for number in run.names())
    if not scored or name in (None, "fashion_mnist"):
        return ""
    return (
        f'<p class="note">Warning: images of {escape(str(name))} are scored by a classifier of clothes '
        "(Fashion-MNIST), which says little of other images: compare these numbers with care, and only with each "
        "other.</p>\n"
    )


def evaluations(run: RunDirectory) -> str:
    """A table of every number of the evaluations: the first, the last, and how it went.

    **Arguments:**

    - `run`: the run.
    """
    groups: dict[str, list[str]] = {}
    for name in run.names():
        if not name.startswith("eval/"):
            continue
        x, y = run.curve(name)
        group, _, rest = name.removeprefix("eval/").partition("/")
        # What the chart of the noise levels shows is folded away, so that it does not bury the few numbers of the rest.
        group = "denoising, by noise level" if _NOISE_LEVEL.fullmatch(name) else group
        cells = (_value(name, y[0]) if len(y) > 1 else "", _value(name, y[-1]), f"{x[-1]:,.0f}", sparkline(y))
        groups.setdefault(group, []).append(
            f'<tr><th scope="row">{escape(rest or group)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        )
    folded = groups.pop("denoising, by noise level", None)
    parts = [_table(group, rows) for group, rows in groups.items()]
    if folded:
        table = _table("denoising", folded)
        parts.append(f"<details>\n<summary>Denoising, by noise level</summary>\n{table}</details>\n")
    if any("[" in group for group in groups):
        note = "In brackets: settings that the evaluation was repeated with when the run was finished."
        parts.append(f'<p class="note">{note}</p>\n')
    return f"<section>\n<h2>Evaluation</h2>\n{''.join(parts)}</section>\n" if parts else ""


def _table(title: str, rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{text}</th>' for text in (escape(title), "first", "last", "at step", "trend"))
    body = f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{''.join(rows)}</tbody>"
    return f'<div class="scroll">\n<table>\n{body}\n</table>\n</div>\n'


def _value(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "nan"
    accuracy = re.search(r"/(top1\w*|knn)$", name)
    return f"{value:.1f}%" if accuracy else f"{value:.4g}"


def _last(line: Line) -> float:
    return next(value for value in reversed(line.y) if math.isfinite(value))


def _card(
    title: str,
    lines: Sequence[Line],
    name: str,
    size: tuple[int, int],
    legend: Sequence[_Item],
    *,
    x_label: str = "step",
    unit: Literal["", "percent", "share"] = "",
) -> str:
    """A chart with its title and legend."""
    values = [value for line in lines for value in line.y if math.isfinite(value)]
    log = title == "Loss" and min(values) > 0 and max(values) > 8 * min(values)
    svg = chart(lines, title=escape(title), name=name, size=size, x_label=x_label, unit=unit, log=log)
    entries = "".join(
        f'<li><span class="swatch {line.style} s{"t" if line.series is None else line.series % SERIES}"></span>'
        f"{escape(line.label)}{f' <b>{escape(value)}</b>' if value else ''}</li>\n"
        for line, value in legend
    )
    key = f'<ul class="legend">\n{entries}</ul>\n' if entries else ""
    kind = "chart wide" if size == _WIDE else "chart"
    return f'<figure class="{kind}">\n<figcaption>{escape(title)}</figcaption>\n{key}{svg}\n</figure>\n'
