"""The results of `experiments/evaluate.py` in a run directory, as metrics of the run."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.eval import FewShot, Generation
from umd_eqx.recipes.dump import flatten
from umd_eqx.report import RunDirectory
from umd_eqx.report.measurements import measurements
from umd_eqx.runs.remeasure import label

_FIGURES = ("metrics", "extra")
_SETTINGS = (
    *("settings", "shots", "size", "data", "precision"),
    *("protocol", "reference", "extractor", "sampler", "guidance"),
)
"""The entries of a result that say how it was measured, apart from the network and the seed, in which runs differ."""

_FILE = re.compile(r"(?P<label>.+)-step(?P<step>\d+)-[0-9a-f]{8}")


class _Measurement(NamedTuple):
    label: str
    step: int | None
    settings: dict[str, Any]
    figures: dict[str, float]


def with_measurements(runs: Sequence[RunDirectory]) -> list[RunDirectory]:
    """Adds the results in `eval/` to the metrics of runs, as `eval/<label>/<metric>` at the step of the weights.

    A label is the name of the result's file without the step and the hash, such as `umd10k-ddim-cfg2-ema`. Where
    results of one label were measured with different settings, those that differ follow in brackets. The settings are
    added to the runs as well. The cells of heat maps (`experiments/layers.py`) are not added.

    **Arguments:**

    - `runs`: the runs.
    """
    found = [[_measurement(name, one) for name, one in measurements(run.path).items()] for run in runs]
    by_label: dict[str, list[dict[str, Any]]] = {}
    for one in (one for several in found for one in several):
        by_label.setdefault(one.label, []).append(one.settings)
    differing = {name: _differing(settings) for name, settings in by_label.items()}
    return [_added(run, own, differing) for run, own in zip(runs, found, strict=True)]


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]


def _added(run: RunDirectory, own: Sequence[_Measurement], differing: Mapping[str, Sequence[str]]) -> RunDirectory:
    last = run.rows[-1]["step"] if run.rows else 0
    rows, settings = list(run.rows), {}
    for one in own:
        name = label(one.label, {key: one.settings.get(key) for key in differing[one.label]})
        settings[name] = one.settings
        step = last if one.step is None else one.step
        rows.append({"step": step, **{f"eval/{name}/{metric}": value for metric, value in one.figures.items()}})
    rows.sort(key=lambda row: row["step"])
    displays = {one.label: _display(one.label) for one in own}
    return dataclasses.replace(run, rows=rows, displays=displays | {**run.displays}, settings=settings)


def _measurement(name: str, result: Mapping[str, Any]) -> _Measurement:
    match = _FILE.fullmatch(name)
    settings = flatten({key: value for key, value in result.items() if key in _SETTINGS})
    parts = () if "heatmap" in result else _FIGURES
    figures = {key: value for part in parts for key, value in _numbers(result.get(part)).items()}
    kind, step = (match["label"], int(match["step"])) if match else (name, None)
    return _Measurement(kind, step, settings, figures)


def _numbers(value: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(value, bool) or not isinstance(value, int | float | Mapping):
        return {}
    if not isinstance(value, Mapping):
        return {prefix: float(value)}
    found = {}
    for name, item in value.items():
        found |= _numbers(item, f"{prefix}/{name}" if prefix else str(name))
    return found


def _display(kind: str) -> Display:
    """How the metrics of a result are displayed: as those of the evaluator that measures them in training."""
    if kind.startswith("probe"):
        return dataclasses.replace(FewShot().display(), headline=None)
    if kind.startswith("transfer"):
        accuracies = Chart("main", "", r"(?P<line>.+/\d+-shot/.+)", "percent")
        return Display((Section("", (accuracies,)),), percent=r".+", higher=r".+")
    main = Chart("main", "", r"(?P<line>fid|fd_\w+|is(_(?!std)\w+)?|recognised)")
    return dataclasses.replace(Generation().display(), sections=(Section("", (main,)),))
