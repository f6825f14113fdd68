"""The page of a run: a single self-contained HTML file, generated from the run directory.

The names of the metrics are those in `sinks.py`. Facts about the run are read from the top level of `environment.json`,
then of `config.json`, then of its `"config"`: `preset`, `name`, `steps` (the last step of the run), `parameters`,
`device` and `command` (a string or a list of words). Missing facts are omitted.
"""

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from umd_eqx.core.files import write_atomically
from umd_eqx.report.curves import running_mean, usual_window
from umd_eqx.report.heatmap import heat_maps
from umd_eqx.report.measurements import measurements
from umd_eqx.report.pictures import Picture, captions, figure, picture_files, read_picture, step_of
from umd_eqx.report.rundir import RunDirectory
from umd_eqx.report.stylesheet import STYLE
from umd_eqx.report.tables import result_tables
from umd_eqx.report.terminal import duration
from umd_eqx.report.webcharts import evaluations, sections, shown_value, training

PICTURE_BYTES = 5_500_000
"""Limit on the total size of the pictures, before base64 adds a third: keeps the page below about 8 MB."""

MAX_EARLIER = 6
"""The maximum number of earlier versions of a picture on the page."""


def write_webpage(run: RunDirectory, measured: Mapping[str, Any] | None = None) -> Path:
    """Writes `report.html` into the run directory, and returns its path.

    Any part of the run may be missing or empty. The file is replaced atomically.

    **Arguments:**

    - `run`: an active run, or a run read by `RunDirectory.read`.
    - `measured`: the `measurements` of the run, if they have been read already. None: reads them.

    Raises `OSError` if the file cannot be written.
    """
    measured = measurements(run.path) if measured is None else measured
    parts = (
        _header(run),
        sections(run, leading=True),
        heat_maps(measured),
        training(run),
        sections(run, leading=False),
        evaluations(run),
        result_tables(measured),
        _pictures(run),
        _reproduce(run),
    )
    path = run.path / "report.html"
    write_atomically(path, document(_name(run), parts))
    return path


def document(title: str, parts: Sequence[str], style: str = "") -> bytes:
    """Returns a whole page, without external resources.

    **Arguments:**

    - `title`: plain text.
    - `parts`: the HTML of its sections.
    - `style`: rules in addition to those of `STYLE`.
    """
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )
    return page.encode("utf-8", "replace")


def _name(run: RunDirectory) -> str:
    return str(run.fact("name") or run.path.resolve().name or "run")


def _header(run: RunDirectory) -> str:
    preset = run.fact("preset")
    kicker = f"preset {preset}" if preset is not None else "run"
    facts = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>\n" for label, value in _facts(run).items()
    )
    return (
        f'<header>\n<p class="kicker">{escape(kicker)}</p>\n<h1>{escape(_name(run))}</h1>\n'
        f"<dl>\n{facts}</dl>\n</header>\n"
    )


def _facts(run: RunDirectory) -> dict[str, str]:
    step, steps = (run.rows[-1]["step"] if run.rows else None), run.count("steps")
    losses, wall = run.curve("train/loss")[1], run.last("throughput/wall_seconds")
    loss = running_mean(losses, usual_window(len(losses)))[-1] if losses else math.nan
    # The median, because the first rate includes compilation and others may be outliers.
    rates = [rate for rate in run.curve("throughput/images_per_s")[1] if math.isfinite(rate)]
    parameters, device = run.count("parameters"), run.fact("device")
    facts: dict[str, str] = {}
    if step is None:
        facts["status"] = "no numbers yet"
    elif steps is not None and step >= steps:
        facts["status"] = f"finished, {step:,} steps"
    else:
        facts["status"] = f"at step {step:,}" + (f" of {steps:,}" if steps is not None else "")
    for name, text in run.headlines().items():
        if (value := run.last(name)) is not None:
            facts[text] = shown_value(run, name, value)
    if math.isfinite(loss):
        facts["loss, smoothed"] = f"{loss:.4g}"
    if rates:
        facts["images/s"] = f"{statistics.median(rates):,.4g}"
    if wall is not None:
        facts["wall time"] = duration(max(0.0, wall))
    if parameters is not None:
        facts["parameters"] = f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters:,}"
    if device is not None:
        facts["device"] = str(device)
    return facts


def _pictures(run: RunDirectory) -> str:
    """Returns the newest version of each picture at full width, and earlier ones folded, as far as the limit allows.

    The newest versions take precedence.
    """
    found, texts = picture_files(run), captions(run)
    newest = {name: paths[-1] for name, paths in found.items()}
    earlier = {name: _spread(paths[:-1], MAX_EARLIER) for name, paths in found.items()}
    room = PICTURE_BYTES
    shown: dict[Path, Picture] = {}
    wanted = [*newest.values(), *sorted((p for paths in earlier.values() for p in paths), key=step_of, reverse=True)]
    for path in wanted:
        picture = read_picture(path)
        if picture is not None and len(picture.data) <= room:
            room -= len(picture.data)
            shown[path] = picture
    figures = []
    for name, path in newest.items():
        old = [shown[one] for one in earlier[name] if one in shown]
        block = figure(shown[path], f"{texts.get(name, name)}, step {step_of(path):,}") if path in shown else ""
        if old:
            strip = "".join(figure(picture, f"step {picture.step:,}") for picture in old)
            block += f'<details>\n<summary>Earlier: {escape(name)}</summary>\n<div class="strip">\n{strip}</div>\n'
            block += "</details>\n"
        figures.append(f'<div class="picture">\n{block}</div>\n' if block else "")
    if not any(figures):
        return ""
    left_out = sum(map(len, found.values())) - len(shown)
    note = f'<p class="note">{left_out:,} more in pictures/.</p>\n' if left_out else ""
    return f'<section>\n<h2>Pictures</h2>\n<div class="pictures">\n{"".join(figures)}</div>\n{note}</section>\n'


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Returns `count` paths, evenly spread, including the first and the last."""
    if len(paths) <= count:
        return list(paths)
    return [paths[round(index * (len(paths) - 1) / (count - 1))] for index in range(count)]


def _reproduce(run: RunDirectory) -> str:
    command = _words(run.fact("command"))
    parts = []
    if command:
        parts.append(f"<h3>Command</h3>\n<pre>{escape(command)}</pre>\n")
        parts.append('<p class="note">Running the same command again resumes the run from its last checkpoint.</p>\n')
    for title, content in (("Configuration", run.config), ("Environment", run.environment)):
        if content is not None:
            text = escape(json.dumps(content, indent=2, ensure_ascii=False))
            parts.append(f"<details>\n<summary>{title}</summary>\n<pre>{text}</pre>\n</details>\n")
    return f"<section>\n<h2>Reproduce</h2>\n{''.join(parts)}</section>\n" if parts else ""


def _words(command: Any) -> str:
    if isinstance(command, str):
        return command
    if isinstance(command, Sequence) and not isinstance(command, Mapping):
        return shlex.join(str(word) for word in command)
    return ""
