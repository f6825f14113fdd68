"""What a finished run is asked to measure that it has not measured yet: evaluators whose settings were changed."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from umd_eqx.core.errors import BadInput
from umd_eqx.core.hashes import sha256_of
from umd_eqx.eval import AbstractEvaluator
from umd_eqx.recipes.dump import default_of, dump, load
from umd_eqx.recipes.upgrade import upgraded
from umd_eqx.report import Pictures, RunDirectory, Wandb, insert_row, save_pictures

NO_MEASUREMENT = ("every", "headline")
"""Settings that say when something is measured, or which of its numbers is shown first, and change no number."""

LONGEST_LABEL = 80
"""Characters of an evaluation's name, and of what was changed of its settings."""


def not_yet_measured(
    run: RunDirectory, evaluators: Mapping[str, AbstractEvaluator], step: int
) -> dict[str, AbstractEvaluator]:
    """The evaluators that were changed since a run was trained, or are new, and have no numbers at `step` yet.

    **Arguments:**

    - `run`: its `config.json` holds the evaluators that the run was trained with.
    - `evaluators`: those that are asked for now, by name.
    - `step`: the step of its newest checkpoint.

    **Returns:** by the name that its numbers get: its own where it is new, else `label` of what was changed.

    **Raises:** `BadInput` where `config.json` cannot be read.
    """
    try:
        trained_with = upgraded(run.config["config"].get("eval") or {})
        changes = {name: changed(trained_with[name], e) for name, e in evaluators.items() if name in trained_with}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{run.path / 'config.json'} cannot be read"
        raise BadInput("--run-dir", problem, "Choose another directory") from error
    asked = {
        label(name, changes.get(name, {})): evaluator
        for name, evaluator in evaluators.items()
        if changes.get(name) != {}  # what was not changed was measured while the run was trained
    }
    there = {name.split("/")[1] for row in run.rows if row["step"] == step for name in row if name.startswith("eval/")}
    return {name: evaluator for name, evaluator in asked.items() if name not in there}


def as_recorded(recorded: Any, evaluators: Mapping[str, AbstractEvaluator]) -> dict[str, AbstractEvaluator]:
    """The evaluators of a run with the settings that it was begun with, so that a report shows what was fixed then.

    **Arguments:**

    - `recorded`: what its `config.json` holds.
    - `evaluators`: those that are asked for now: taken where they are new, or what is recorded cannot be read.
    """
    found = dict(evaluators)
    for name, dumped in (recorded["config"].get("eval") or {}).items():
        with contextlib.suppress(BadInput, TypeError, AttributeError):
            found[name] = load(dumped, types=[type(evaluators[name])] if name in evaluators else [])
    return found


def add_measurement(
    run: RunDirectory, step: int, row: Mapping[str, float], pictures: Pictures, wandb: Wandb | None
) -> RunDirectory:
    """Writes what was measured of a finished run: a further row of its step, and pictures; `wandb` is closed.

    Returns the run as it is now. Raises `OSError` if the disk refuses.
    """
    rows = insert_row(run.path / "metrics.jsonl", run.rows, step, row)
    save_pictures(run.path, step, pictures)
    if wandb is not None:
        wandb.log(step, row)
        wandb.images(step, pictures)
        wandb.finish()
    return dataclasses.replace(run, rows=rows)


def changed(recorded: Any, asked: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of `asked` (a dataclass) that differ from a dump of the same, by dotted name.

    A field that the dump does not have is compared with its default: the dump is then of an older version. Tuples are
    compared as a whole. Of another type than the recorded one, all fields are compared with their defaults.
    `NO_MEASUREMENT` is left out.
    """
    if not (dataclasses.is_dataclass(asked) and isinstance(recorded, Mapping)) or isinstance(asked, type):
        return {} if dump(asked) == recorded else {prefix.removesuffix("."): dump(asked)}
    found: dict[str, Any] = {}
    if recorded.get("type") != type(asked).__name__:
        found, recorded = {f"{prefix}type": type(asked).__name__}, {}
    for field in dataclasses.fields(asked):
        if prefix or field.name not in NO_MEASUREMENT:
            before = recorded[field.name] if field.name in recorded else dump(default_of(field))
            found |= changed(before, getattr(asked, field.name), f"{prefix}{field.name}.")
    return found


def label(name: str, changes: Mapping[str, Any]) -> str:
    """The name of an evaluation with what was changed of its settings: `fewshot[knn=5,shots=10]`. It has no slash."""
    if not changes:
        return name
    exact = ",".join(f"{key}={_word(value)}" for key, value in sorted(changes.items()))
    plain = re.sub(r"[^A-Za-z0-9.,=+_-]+", "-", exact)
    if plain != exact or len(plain) > LONGEST_LABEL:
        plain = f"{plain[:LONGEST_LABEL]}-{sha256_of(exact.encode())[:8]}"
    return f"{name}[{plain}]"


def _word(value: Any) -> str:
    return "+".join(map(_word, value)) if isinstance(value, list) else str(value)
