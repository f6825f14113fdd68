"""`results.json`: all figures of a run in one file, with everything that they depend on."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umd_eqx.core.files import save_json
from umd_eqx.core.json_files import read_json
from umd_eqx.report.measurements import measurements
from umd_eqx.report.rundir import RunDirectory
from umd_eqx.report.webpage import write_webpage

RESULTS = "results.json"
"""The name of the file in a run directory."""

FORMAT = 1
"""Format version of the file, increased when an entry is removed or gets another meaning."""

_FROM_ENVIRONMENT = (
    *("command", "started", "python", "packages", "device", "devices", "parameters", "flops_per_step", "data"),
)


def results(run: RunDirectory, measured: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the results of a run as plain data: a function of its run directory alone.

    `measured` are the `measurements` of the run, if they have been read already. None: reads them.

    The entries, each None where it is not known:

    - `format`: `FORMAT`.
    - `name`, `preset`, `seed`, `recipe`: the name of the directory, the preset, the seed, and the whole configuration
      (`umd_eqx.recipes.dump.dump`).
    - `step`, `steps`: the last step that has metrics, and the last step of the run.
    - `images_seen`, `seconds`, `flops`: images, wall time in seconds and FLOPs of the training up to `step`.
    - `command`, `started`, `python`, `packages`, `device`, `devices`, `parameters`, `flops_per_step`, `data`: as in
      `environment.json`. `data` describes the images; their digest is `recipe["data"]["content"]`.
    - `metrics`: for each metric, by the name that it has in `metrics.jsonl`, its `final` value with its `step`, and its
      `best` value with its `best_step` where `better` ("higher", "lower") is known. The metrics of the untrained
      network are named `eval/untrained/...`.
    - `measurements`: the results of `experiments/evaluate.py`, by the names of their files in `eval/`.
    - `history`: the file, in the run directory, with the values of all steps.
    """
    config = run.config if isinstance(run.config, Mapping) else {}
    recorded = config.get("config")
    recipe = recorded if isinstance(recorded, Mapping) else {}
    step = run.rows[-1]["step"] if run.rows else None
    names = dict.fromkeys(name for row in run.rows for name in row if name != "step")
    batch_size = _entry(_entry(recipe, "data"), "batch_size")
    return {
        "format": FORMAT,
        "name": run.path.resolve().name,
        "preset": config.get("preset"),
        "seed": recipe.get("seed"),
        "recipe": recipe or None,
        "step": step,
        "steps": run.count("steps"),
        "images_seen": _times(batch_size, step),
        "seconds": run.last("throughput/wall_seconds"),
        "flops": _times(run.fact("flops_per_step"), step),
        **{name: _entry(run.environment, name) for name in _FROM_ENVIRONMENT},
        "metrics": {name: _metric(run, name) for name in names},
        "measurements": dict(measurements(run.path) if measured is None else measured),
        "history": "metrics.jsonl",
    }


def write_results(run: RunDirectory, measured: Mapping[str, Any] | None = None) -> Path:
    """Writes `results.json` into the run directory, atomically, and returns its path.

    **Arguments:**

    - `run`: an active run, or a run read by `RunDirectory.read`.
    - `measured`: as for `results`.

    Raises `OSError` if the file cannot be written.
    """
    path = run.path / RESULTS
    save_json(path, results(run, measured))
    return path


def write_report(run: RunDirectory) -> Path:
    """Writes `results.json` and `report.html` into the run directory, and returns the path of the page.

    **Arguments:**

    - `run`: as for `write_results`.

    Raises `OSError` if a file cannot be written.
    """
    measured = measurements(run.path)
    write_results(run, measured)
    return write_webpage(run, measured)


def read_results(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the content of the `results.json` of a run directory; None if there is none, or it cannot be read.

    **Arguments:**

    - `path`: the run directory.
    """
    found = _read(Path(path) / RESULTS)
    return found if isinstance(found, dict) else None


def _metric(run: RunDirectory, name: str) -> dict[str, Any]:
    points = [(row["step"], row[name]) for row in run.rows if name in row]
    step, final = points[-1]
    better = run.better(name)
    summary = {"final": final, "step": step, "better": better, "best": None, "best_step": None}
    finite = [(s, v) for s, v in points if isinstance(v, int | float) and math.isfinite(v)]
    if better is None or not finite:
        return summary
    best_step, best = (max if better == "higher" else min)(finite, key=lambda point: point[1])
    return summary | {"best": best, "best_step": best_step}


def _times(count: Any, step: int | None) -> int | None:
    return None if step is None or not isinstance(count, int | float) else int(count * step)


def _entry(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
