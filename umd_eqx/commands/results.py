"""Shared by the benchmarks of `experiments/evaluate.py`: opening the images and writing the results."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from umd_eqx.core.errors import BadInput, disk_errors
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of_json
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.report import write_results
from umd_eqx.report.results import results
from umd_eqx.runs.pretrained import Pretrained
from umd_eqx.runs.recorded import recorded_run


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


def save_result(
    result: Mapping[str, Any], name: str, run: str | None, file: str | None, types: Iterable[type] = ()
) -> None:
    """Writes a result to `file` and, if `run` is a run directory, to `eval/<name>.json` in it.

    The run's `results.json` is updated; `file` also holds the results of the run under "run" (`of_run`). `types` are
    user-defined classes that the run's configuration may contain.

    Raises `BadInput` if the disk is full.
    """
    contents = {} if file is None else {Path(file): dict(result) | of_run(run, types)}
    in_run = run is not None and (Path(run) / "config.json").exists()
    if run is not None and in_run:
        contents[Path(run) / "eval" / f"{name}.json"] = dict(result)
    for location, content in contents.items():
        with disk_errors(location.parent):
            location.parent.mkdir(parents=True, exist_ok=True)
            save_json(location, [content])
        print(f"result: {location}")
    if run is not None and in_run:
        with disk_errors(run):
            write_results(recorded_run(run, types))


def of_run(run: str | None, types: Iterable[type] = ()) -> dict[str, Any]:
    """The results of a run, with its whole recipe, as the entry "run" of a result; None for anything but a run."""
    is_run = run is not None and (Path(run) / "config.json").exists()
    return {"run": results(recorded_run(run, types)) if run is not None and is_run else None}
