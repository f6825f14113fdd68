"""Heat maps of the page of a run, and as pictures."""

import contextlib
import math
from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from umd_eqx.report.curves import INK, svg_of

MOST = 6
"""The maximum number of heat maps on a page: the newest."""

_CELL, _MARGIN_TOP = (84, 30), 34
_LETTER = 7


class HeatMap(NamedTuple):
    """A table of numbers that is drawn with colours.

    - `heading`, `title`: the heading of the section of the page, and the title of the map.
    - `rows`, `columns`: the labels of rows and columns; `column_title` is what the columns have in common.
    - `values`: the numbers, NaN where there is none.
    - `marked`: row and column of a cell with a frame; None: no frame.
    - `note`: the text below the map.
    """

    heading: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    column_title: str
    values: Float[np.ndarray, "rows columns"]
    marked: tuple[int, int] | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the map as JSON data; NaN becomes None."""
        values = [[value if math.isfinite(value) else None for value in row] for row in self.values.tolist()]
        return {**self._asdict(), "values": values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HeatMap":
        """The inverse of `to_json`. Raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        rows, columns = (tuple(map(str, data[name])) for name in ("rows", "columns"))
        values = np.array(data["values"], float)
        if not rows or not columns or values.shape != (len(rows), len(columns)):
            raise ValueError("the values of a heat map do not match its rows and columns")
        heading, title, column_title, note = (str(data[n]) for n in ("heading", "title", "column_title", "note"))
        marked = None if data["marked"] is None else (int(data["marked"][0]), int(data["marked"][1]))
        return cls(heading, title, rows, columns, column_title, values, marked, note)


def heat_maps(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a section of the page with the heat maps in the results of a run, newest first; empty if there are none.

    They are the entries `"heatmap"` of the `measurements` of the run, as `HeatMap.to_json` returns them. Others are
    ignored.
    """
    found = []
    for result in measured.values():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found.append(HeatMap.from_json(result["heatmap"]))
    newest = found[::-1][:MOST]
    sections = []
    for heading in dict.fromkeys(one.heading for one in newest):
        figures = [_figure(one, f"map-{i}") for i, one in enumerate(newest) if one.heading == heading]
        body = "".join(figures)
        sections.append(f'<section>\n<h2>{escape(heading)}</h2>\n<div class="headline">\n{body}</div>\n</section>\n')
    return "".join(sections)


def picture(heatmap: HeatMap) -> UInt8[np.ndarray, "rows columns 3"]:
    """Returns a heat map as a picture on white, at twice the size that it has on a page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with mpl.rc_context({"text.usetex": False, "font.family": "DejaVu Sans"}):
        figure, _ = _drawn(heatmap, heatmap.title)
        figure.set_dpi(144)
        figure.patch.set_facecolor("white")
        figure.patch.set_visible(True)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(heatmap: HeatMap, name: str) -> str:
    figure, size = _drawn(heatmap)
    svg = svg_of(figure, escape(heatmap.title), name, size)
    note = f'<p class="note">{escape(heatmap.note)}</p>\n' if heatmap.note else ""
    caption = f"<figcaption>{escape(heatmap.title)}</figcaption>"
    return f'<figure class="chart">\n{caption}\n<div style="max-width:{size[0]}px">{svg}</div>\n{note}</figure>\n'


def _drawn(heatmap: HeatMap, title: str = "") -> tuple[Any, tuple[int, int]]:
    """Returns a matplotlib figure, with a title if one is given, and its size in pixels."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows, columns = heatmap.values.shape
    left, top = 20 + _LETTER * max(map(len, heatmap.rows)), _MARGIN_TOP + (26 if title else 0)
    width = max(left + columns * _CELL[0] + 8, 30 + round(8.1 * len(title)))  # a letter of the title is 8 pixels wide
    height = top + rows * _CELL[1] + 8
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes((left / width, 8 / height, columns * _CELL[0] / width, rows * _CELL[1] / height))
    finite = heatmap.values[np.isfinite(heatmap.values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    scale, colours = Normalize(low, high if high > low else low + 1.0), colormaps["viridis"]
    for row, values in enumerate(heatmap.values):
        for column, value in enumerate(values):
            if math.isfinite(value):
                shade = colours(scale(value))
                axes.add_patch(_cell(row, column, facecolor=shade))
                ink = "black" if np.dot(shade[:3], (0.299, 0.587, 0.114)) > 0.45 else "white"
                axes.text(column + 0.5, row + 0.5, f"{value:.1f}", color=ink, fontsize=12, ha="center", va="center")
    if heatmap.marked is not None:
        axes.add_patch(_cell(*heatmap.marked, fill=False, edgecolor="#d1231c", linewidth=2.5, clip_on=False))
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_xticks(np.arange(columns) + 0.5, heatmap.columns)
    axes.set_yticks(np.arange(rows) + 0.5, heatmap.rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=6, labelsize=12, labelcolor=INK)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.text(10 / width, 1 - (top - 12) / height, heatmap.column_title, fontsize=12, color=INK, va="center")
    if title:
        figure.text(10 / width, 1 - 16 / height, title, fontsize=12, color=INK, va="center", weight="bold")
    return figure, (width, height)


def _cell(row: int, column: int, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column, row), 1, 1, **style)
