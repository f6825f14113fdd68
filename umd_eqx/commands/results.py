"""Shared by the benchmarks of `experiments/evaluate.py`: opening the images and writing the results."""

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from umd_eqx.core.errors import BadInput, disk_errors, require_writable, require_writable_folder
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of_json
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.data.source import DataSource
from umd_eqx.latents.store import source_hash
from umd_eqx.report import write_webpage
from umd_eqx.report.measurements import measurements
from umd_eqx.report.results import RESULTS, read_results, results
from umd_eqx.runs.pretrained import Pretrained
from umd_eqx.runs.recorded import recorded_run


def open_data(source: Pretrained, data_dir: str | None) -> tuple[SkipBroken, CountBroken]:
    """The training and test images of a network, from `data_dir` if given, otherwise from their original location.

    Raises `BadInput` naming `data.source.dir` if they cannot be read, or if their channels do not match the network's.
    """
    try:
        train, test = (source.data.moved(data_dir).located() if data_dir else source.data).open()
    except BadInput as error:
        raise BadInput("data.source.dir", error.problem, error.hint) from error
    if train.spec.channels != source.spec.channels:
        problem = f"{train.spec.name} has {train.spec.channels} channels, but the network has {source.spec.channels}"
        raise BadInput("data.source.dir", problem, "Pass the data that the network was trained on")
    return train, test


def probed_network(source: Pretrained) -> dict[str, Any]:
    """The entries of the result of a probe that identify the network, its recipe, and the versions of packages."""
    return {
        "network": source.describe(),
        "weights": source.digest,
        "tokenizer": None if source.latents is None else source.latents.spec.digest,
        "precision": source.config.precision,
        "recipe": source.trained,
        "versions": {name: importlib.metadata.version(name) for name in ("umd_eqx", "jax", "numpy")},
    }


def probed_data(source: Pretrained, train: DataSource, test: DataSource) -> dict[str, Any]:
    """The description of the images of a probe: name, splits, counts, size and hashes."""
    return {
        "name": train.spec.name,
        "train": source.data.train_split,
        "test": source.data.test_split,
        "train_images": len(train),
        "test_images": len(test),
        "size": source.data.size,
        "sha256": [source_hash(train), source_hash(test)],
    }


def settings_hash(settled: Mapping[str, Any]) -> str:
    """A hash (8 hexadecimal digits) of the settings of a result, so different results get different file names."""
    return sha256_of_json(settled)[:8]


def require_place(run: str | None, file: str | None) -> None:
    """Raises `BadInput` if `save_result` could not write a result to the run directory or to the file of `--json`.

    This is for the time before a measurement of minutes or hours. Nothing is left behind.
    """
    if file is not None:
        require_writable("json", file)
    if run is not None and (Path(run) / "config.json").exists():
        kept = Path(run) / "eval"
        require_writable_folder("run", run)
        if kept.exists():
            require_writable_folder("run", kept)


def save_result(
    result: Mapping[str, Any], name: str, run: str | None, file: str | None, types: Iterable[type] = ()
) -> dict[str, Any] | None:
    """Writes a result to `file` and, if `run` is a run directory, to `eval/<name>.json` in it.

    The measurements in the run's `results.json` are updated; `file` also holds the results of the run under "run", as
    `of_run` returns them. `types` are user-defined classes that the run's configuration may contain.

    Returns all measurements of the run; None if there is no run directory. Raises `BadInput` if the disk is full.
    """
    found = of_run(run, types)
    if run is not None and found is not None:
        kept = Path(run) / "eval" / f"{name}.json"
        with disk_errors(run):
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_json(kept, [result])
            found["measurements"] = measurements(run)
            save_json(Path(run) / RESULTS, found)
        print(f"result: {kept}")
    if file is not None:
        with disk_errors(Path(file).parent):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            save_json(file, [{**result, "run": found}])
        print(f"result: {file}")
    return None if found is None else found["measurements"]


def of_run(run: str | None, types: Iterable[type] = ()) -> dict[str, Any] | None:
    """The results of a run, with its whole recipe; None for anything but a run directory.

    They are those in its `results.json`, or are gathered from its other files if a version without them trained it.
    """
    if run is None or not (Path(run) / "config.json").exists():
        return None
    return read_results(run) or results(recorded_run(run, types))


def show_in_report(
    run: str | None,
    types: Iterable[type] = (),
    *,
    measured: Mapping[str, Any] | None,
    recorded: Any = None,
    environment: Any = None,
) -> None:
    """Writes the report of a run again, with the tables of all results; nothing for anything but a run directory.

    **Arguments:**

    - `run`: the run directory.
    - `types`: user-defined classes that the run may contain.
    - `measured`: the result of `save_result`.
    - `recorded`, `environment`: the contents of its `config.json` and `environment.json`, if they have been read
        already. None: reads them.

    **Raises:** `BadInput` if the disk is full, or `metrics.jsonl` is corrupt.
    """
    if run is None or not (Path(run) / "config.json").exists():
        return
    with disk_errors(run):
        shown = recorded_run(run, types, config=recorded, environment=environment)
        print(f"report: {write_webpage(shown, measured)}")
