"""Charts as SVG text for a page: coloured by the style sheet of the page, without fonts or external resources."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

SERIES = 6
"""The number of colours of lines: `--series-0` .. `--series-5` of the style sheet of the page."""

COUNTS = ("step", "images seen")
"""The labels of horizontal axes of integers, which are written as 1k or 2M."""

# matplotlib draws with colours that nothing else uses, which are then replaced by the variables of the page.
_INK, _RULE = "#0a0b0c", "#0a0b0d"
_SERIES = tuple(f"#0a0b{16 + index:02x}" for index in range(SERIES))


INK = _INK
"""The colour of text in figures for `svg_of`, which becomes that of the page."""


class Line(NamedTuple):
    """One line of a chart.

    - `label`: the name in the legend; empty for a line without an entry.
    - `x`, `y`: the points, of equal number; a NaN leaves a gap.
    - `series`: the index of the colour, 0 or more (colours repeat after `SERIES`); None is the colour of the text.
    - `style`: `"solid"`, `"raw"` (thin and pale, for drawing below a smoothed line), `"thin"` (thin and less pale, for
      one of several runs), `"dashed"` or `"dotted"`.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    series: int | None = 0
    style: Literal["solid", "raw", "thin", "dashed", "dotted"] = "solid"


def usual_window(points: int) -> int:
    """Returns the `window` of `running_mean` for a curve of the given number of points.

    **Arguments:**

    - `points`: the number of points, 0 or more.
    """
    return max(1, points // 40)


def drawable(lines: Sequence[Line]) -> list[Line]:
    """Returns the lines that have at least one finite point.

    **Arguments:**

    - `lines`: the lines to filter.
    """
    return [line for line in lines if np.isfinite(np.asarray(line.y, float)).any()]


def running_mean(y: Sequence[float], window: int) -> list[float]:
    """Returns the running mean, with weights that decay by a factor e over `window` points.

    The window is shorter near the start (an eighth of the points so far), where a loss falls fastest and the mean would
    lag behind. NaNs are skipped.

    **Arguments:**

    - `y`: the points, oldest first.
    - `window`: the decay length in points, 1 or more.
    """
    mean, seen, means = math.nan, 0, []
    for value in y:
        if math.isfinite(value):
            keep = math.exp(-1 / min(window, 1 + seen / 8))
            mean = keep * mean + (1 - keep) * value if seen else value
            seen += 1
        means.append(mean)
    return means


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    name: str,
    size: tuple[int, int],
    x_label: str = "step",
    unit: Literal["", "percent", "share"] = "",
    log: bool = False,
) -> str:
    """Returns an `<svg>` element of the lines, without a legend, coloured by variables of the style sheet.

    **Arguments:**

    - `lines`: at least one, each drawable.
    - `title`: the label for screen readers, already escaped for HTML.
    - `name`: letters, digits and `-`; unique on the page, as it is the prefix of the ids.
    - `size`: width and height in pixels at the full width of the page.
    - `x_label`: the label of the horizontal axis.
    - `unit`: `"percent"` appends % to the values; `"share"` shows values in [0, 1] as percentages.
    - `log`: whether the vertical axis is logarithmic, which requires a positive value.
    """
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes((52 / width, 40 / height, (width - 66) / width, (height - 54) / height))
    for line in lines:
        _plot(axes, line)
    _style_frame(axes)
    axes.set_xlim(*_limits(lines))
    _style_x_axis(axes, x_label, ticks=max(3, width // 110))
    _style_y_axis(axes, unit, decades=_decades(lines) if log else None)
    return svg_of(figure, title, name, size)


def svg_of(figure: Any, title: str, name: str, size: tuple[int, int]) -> str:
    """Returns a matplotlib figure as an `<svg>` element, with the fonts and text colours of the page.

    **Arguments:**

    - `figure`: the figure, of `size` at 72 dots per inch.
    - `title`, `name`, `size`: as for `chart`.
    """
    return _for_page(_svg(figure, name), title, name, size)


def _plot(axes: Any, line: Line) -> None:
    x, y = _thin(np.asarray(line.x, float), np.asarray(line.y, float))
    solid = line.style == "solid"
    axes.plot(
        x,
        y,
        color=_INK if line.series is None else _SERIES[line.series % SERIES],
        linestyle={"dashed": (0, (6, 4)), "dotted": (0, (1.2, 3))}.get(line.style, "-"),
        linewidth={"raw": 0.9, "thin": 0.9, "solid": 2.0}.get(line.style, 1.4),
        alpha={"raw": 0.28, "thin": 0.6}.get(line.style, 1.0),
        marker="o" if len(x) <= 40 and (solid or len(x) == 1) else None,
        markersize=4.5,
        clip_on=line.style == "raw",
    )


def _style_frame(axes: Any) -> None:
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.grid(axis="y", color=_RULE, linewidth=0.8, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=7, labelsize=12, labelcolor=_INK)


def _style_x_axis(axes: Any, label: str, ticks: int) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    steps = label in COUNTS
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10], integer=steps))
    if steps:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(label, fontsize=12, color=_INK, loc="right", labelpad=3)


def _style_y_axis(axes: Any, unit: Literal["", "percent", "share"], decades: float | None) -> None:
    """Sets scale and ticks of the vertical axis: linear, or logarithmic over a number of `decades`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if decades is None:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=12))
        axes.yaxis.set_minor_formatter(NullFormatter())
    scale = 100 if unit == "share" else 1
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:.4g}%" if unit else _tick(value)))


def _svg(figure: Any, salt: str) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # Text stays text, in the font of the page. The salt makes the output deterministic.
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.usetex": False,
        "font.family": "DejaVu Sans",
    }
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def _tick(value: float) -> str:
    """Formats a number to fit into the margin: 0.25, 12, 7.5e-4."""
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    values = [value for line in lines for value in (min(line.x), max(line.x))]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _decades(lines: Sequence[Line]) -> float:
    values = np.concatenate([np.asarray(line.y, float) for line in lines])
    values = values[np.isfinite(values) & (values > 0)]
    return math.log10(values.max() / values.min())


def _thin(x: np.ndarray, y: np.ndarray, points: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `points` points, including the last; more than the screen has columns only enlarge the file."""
    if len(x) <= points:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x[kept], y[kept]


def _for_page(svg: str, title: str, name: str, size: tuple[int, int]) -> str:
    body = svg[svg.index("<g") : svg.rindex("</svg>")]
    # A style element would apply to the whole page; its rules are in the style sheet of the page instead.
    body = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    # Ids must be unique among all charts of a page, and most of them are never referenced.
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    used = {one or other for one, other in used}
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    for colour, variable in ((_INK, "muted"), (_RULE, "rule"), *((c, f"series-{i}") for i, c in enumerate(_SERIES))):
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{title}">\n{body}</svg>'


def sparkline(y: Sequence[float]) -> str:
    """Returns an `<svg>` element of a curve, as high as a line of text; empty for less than two finite points.

    **Arguments:**

    - `y`: the points, oldest first, evenly spaced.
    """
    values = [value for value in y if math.isfinite(value)]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    scale = 16 / (high - low) if high > low else 0.0
    xs = np.linspace(2, 78, len(values))
    points = [(x, 18 - scale * (value - low)) for x, value in zip(xs, values, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dot = f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="2"/>'
    return f'<svg class="spark" viewBox="0 0 80 20" aria-hidden="true"><polyline points="{path}"/>{dot}</svg>'
