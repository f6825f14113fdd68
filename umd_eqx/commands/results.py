"""What the benchmarks of `experiments/evaluate.py` have in common: the images, and where results go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umd_eqx.core.errors import BadInput, disk_errors
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of_json
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.runs.pretrained import Pretrained


def open_data(source: Pretrained, data_dir: str | None) -> tuple[SkipBroken, CountBroken]:
    """The training and the test images of a network, in `data_dir` where it is given, else where they lay.

    Raises `BadInput` naming `--data-dir` where they cannot be read, or have other channels than the network's.
    """
    try:
        train, test = (source.data.moved(data_dir) if data_dir else source.data).open()
    except BadInput as error:
        hint = error.hint.replace("--data.dir", "--data-dir")
        raise BadInput("--data-dir", error.problem, hint) from error
    if train.spec.channels != source.spec.channels:
        problem = f"{train.spec.name} has {train.spec.channels} channels, the network {source.spec.channels}"
        raise BadInput("--data-dir", problem, "Give the data that it was trained on")
    return train, test


def tag(settled: Mapping[str, Any]) -> str:
    """8 hexadecimal digits of all that a result depends on, so that no result takes the place of another."""
    return sha256_of_json(settled)[:8]


def keep(result: Mapping[str, Any], name: str, run: str | None, file: str | None) -> None:
    """Writes a result to `file`, and as `eval/<name>.json` into the run directory, where `run` is one.

    Raises `BadInput` where the disk is full.
    """
    locations = [] if file is None else [Path(file)]
    if run is not None and (Path(run) / "config.json").exists():
        locations.append(Path(run) / "eval" / f"{name}.json")
    for location in locations:
        with disk_errors(location.parent):
            location.parent.mkdir(parents=True, exist_ok=True)
            save_json(location, [result])
        print(f"result: {location}")
