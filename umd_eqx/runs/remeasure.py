"""Repeats the evaluations of a finished run whose settings have changed since it was trained."""

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

NON_RESULT_FIELDS = ("every", "headline")
"""Settings that affect when an evaluation runs or which result is its headline, but not the results."""

MAX_LABEL_LENGTH = 80
"""Maximum number of characters for the changed settings in the name of an evaluation."""


def not_yet_measured(
    run: RunDirectory, evaluators: Mapping[str, AbstractEvaluator], step: int
) -> dict[str, AbstractEvaluator]:
    """The evaluators that are new or changed since a run was trained, and have no results at `step` yet.

    **Arguments:**

    - `run`: the run; its `config.json` holds the evaluators it was trained with.
    - `evaluators`: the requested evaluators by name.
    - `step`: the step of its newest checkpoint.

    **Returns:** the evaluators by the name of their results: the own name of a new one, the `label` of a changed one.

    **Raises:** `BadInput` if `config.json` cannot be read.
    """
    try:
        trained_with = upgraded(run.config["config"].get("eval") or {})
        changes = {name: changed(trained_with[name], e) for name, e in evaluators.items() if name in trained_with}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{run.path / 'config.json'} cannot be read"
        raise BadInput("run_dir", problem, "Choose another directory") from error
    asked = {
        label(name, changes.get(name, {})): evaluator
        for name, evaluator in evaluators.items()
        if changes.get(name) != {}  # unchanged evaluators were measured during training
    }
    there = {name.split("/")[1] for row in run.rows if row["step"] == step for name in row if name.startswith("eval/")}
    return {name: evaluator for name, evaluator in asked.items() if name not in there}


def as_recorded(recorded: Any, evaluators: Mapping[str, AbstractEvaluator]) -> dict[str, AbstractEvaluator]:
    """The evaluators with the settings recorded at the start of a run, for display in its report.

    **Arguments:**

    - `recorded`: the contents of its `config.json`.
    - `evaluators`: the requested evaluators, used where they are new or the recorded ones cannot be read.
    """
    found = dict(evaluators)
    for name, dumped in (recorded["config"].get("eval") or {}).items():
        with contextlib.suppress(BadInput, TypeError, AttributeError):
            found[name] = load(dumped, types=[type(evaluators[name])] if name in evaluators else [])
    return found


def add_measurement(
    run: RunDirectory, step: int, row: Mapping[str, float], pictures: Pictures, wandb: Wandb | None
) -> RunDirectory:
    """Writes new results of a finished run: a metrics row at its step, and pictures. Closes `wandb`.

    Returns the updated run. Raises `OSError` if writing fails.
    """
    rows = insert_row(run.path / "metrics.jsonl", run.rows, step, row)
    save_pictures(run.path, step, pictures)
    if wandb is not None:
        wandb.log(step, row)
        wandb.images(step, pictures)
        wandb.finish()
    return dataclasses.replace(run, rows=rows)


def changed(recorded: Any, asked: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of `asked` (a dataclass) that differ from a recorded dump, by dotted name.

    Fields missing from the dump, which an older version wrote, are compared with their defaults. Tuples are compared
    as a whole. If the types differ, all fields are compared with their defaults. `NON_RESULT_FIELDS` is excluded.
    """
    if not (dataclasses.is_dataclass(asked) and isinstance(recorded, Mapping)) or isinstance(asked, type):
        return {} if dump(asked) == recorded else {prefix.removesuffix("."): dump(asked)}
    found: dict[str, Any] = {}
    if recorded.get("type") != type(asked).__name__:
        found, recorded = {f"{prefix}type": type(asked).__name__}, {}
    for field in dataclasses.fields(asked):
        if prefix or field.name not in NON_RESULT_FIELDS:
            before = recorded[field.name] if field.name in recorded else dump(default_of(field))
            found |= changed(before, getattr(asked, field.name), f"{prefix}{field.name}.")
    return found


def label(name: str, changes: Mapping[str, Any]) -> str:
    """The name of an evaluation with its changed settings, such as `fewshot[knn=5,shots=10]`; contains no slash."""
    if not changes:
        return name
    exact = ",".join(f"{key}={_word(value)}" for key, value in sorted(changes.items()))
    plain = re.sub(r"[^A-Za-z0-9.,=+_-]+", "-", exact)
    if plain != exact or len(plain) > MAX_LABEL_LENGTH:
        plain = f"{plain[:MAX_LABEL_LENGTH]}-{sha256_of(exact.encode())[:8]}"
    return f"{name}[{plain}]"


def _word(value: Any) -> str:
    return "+".join(map(_word, value)) if isinstance(value, list) else str(value)
