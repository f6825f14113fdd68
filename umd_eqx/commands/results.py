"""Shared by the benchmarks of `experiments/evaluate.py`: opening the images and writing the results."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from umd_eqx.core.errors import BadInput, disk_errors
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of_json
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.eval import AbstractEvaluator
from umd_eqx.recipes.dump import load
from umd_eqx.report import RunDirectory, write_webpage
from umd_eqx.runs.pretrained import Pretrained


def open_data(source: Pretrained, data_dir: str | None) -> tuple[SkipBroken, CountBroken]:
    """The training and test images of a network, from `data_dir` if given, otherwise from their original location.

    Raises `BadInput` naming `data_dir` if they cannot be read, or if their channels do not match the network's.
    """
    try:
        train, test = (source.data.moved(data_dir).located() if data_dir else source.data).open()
    except BadInput as error:
        hint = error.hint.replace("`data.source.dir`", "`data_dir`")
        raise BadInput("data_dir", error.problem, hint) from error
    if train.spec.channels != source.spec.channels:
        problem = f"{train.spec.name} has {train.spec.channels} channels, but the network has {source.spec.channels}"
        raise BadInput("data_dir", problem, "Pass the data that the network was trained on")
    return train, test


def settings_hash(settled: Mapping[str, Any]) -> str:
    """A hash (8 hexadecimal digits) of the settings of a result, so different results get different file names."""
    return sha256_of_json(settled)[:8]


def save_result(result: Mapping[str, Any], name: str, run: str | None, file: str | None) -> None:
    """Writes a result to `file` and, if `run` is a run directory, to `eval/<name>.json` in it.

    Raises `BadInput` if the disk is full.
    """
    locations = [] if file is None else [Path(file)]
    if run is not None and (Path(run) / "config.json").exists():
        locations.append(Path(run) / "eval" / f"{name}.json")
    for location in locations:
        with disk_errors(location.parent):
            location.parent.mkdir(parents=True, exist_ok=True)
            save_json(location, [result])
        print(f"result: {location}")


def show_in_report(run: str | None, source: Pretrained, types: Iterable[type] = (), *, recorded: Any = None) -> None:
    """Writes the report of a run again, with the tables of all results; nothing for an export.

    **Arguments:**

    - `run`: the run directory.
    - `source`: the network of the run.
    - `types`: user-defined classes that the run may contain.
    - `recorded`: the content of its `config.json`, if it has been read already. None: reads it.

    **Raises:** `BadInput` if the disk is full, or `metrics.jsonl` is corrupt.
    """
    if run is None or source.trained is None:
        return
    displays = {}
    for name, dumped in (source.trained.get("eval") or {}).items():
        with contextlib.suppress(BadInput, TypeError, AttributeError):  # it is shown in a table, without charts
            evaluator = load(dumped, types)
            if isinstance(evaluator, AbstractEvaluator):
                displays[name] = evaluator.display(source.spec.name)
    with disk_errors(run):
        shown = RunDirectory.read(run, displays, config=recorded, environment=source.environment)
        print(f"report: {write_webpage(shown)}")
