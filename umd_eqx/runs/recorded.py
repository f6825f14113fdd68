"""Runs as their directories record them, without building a network or opening data."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from umd_eqx.core.display import Display
from umd_eqx.core.errors import BadInput
from umd_eqx.eval import AbstractEvaluator
from umd_eqx.recipes.dump import load
from umd_eqx.report import RunDirectory


def recorded_run(
    path: str | os.PathLike[str], types: Iterable[type] = (), *, config: Any = None, environment: Any = None
) -> RunDirectory:
    """Reads a run directory, with its evaluators' displays as far as their types are known.

    **Arguments:**

    - `path`: a run directory, of any version of this program.
    - `types`: user-defined classes that its configuration may contain.
    - `config`, `environment`: the contents of its `config.json` and `environment.json`, if they have been read already.
        None: reads them.

    **Raises:** `BadInput` if `metrics.jsonl` is corrupt before its last line.
    """
    run = RunDirectory.read(path, config=config, environment=environment)
    data = run.fact("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    displays = _displays(run.config, name if isinstance(name, str) else None, types)
    return RunDirectory(run.path, run.rows, run.config, run.environment, displays)


def _displays(recorded: Any, data: str | None, types: Iterable[type] = ()) -> dict[str, Display]:
    """How the evaluators in the content of a `config.json` display their results, by name.

    Those that cannot be read, for example because their type is not known, are left out.

    **Arguments:**

    - `recorded`: the content of the file.
    - `data`: the name of the run's data.
    - `types`: user-defined classes that it may contain.
    """
    config = recorded.get("config") if isinstance(recorded, Mapping) else None
    dumped = config.get("eval") if isinstance(config, Mapping) else None
    found = {}
    for name, one in dumped.items() if isinstance(dumped, Mapping) else ():
        with contextlib.suppress(BadInput, TypeError, AttributeError):
            evaluator = load(one, types=types)
            if isinstance(evaluator, AbstractEvaluator):
                found[str(name)] = evaluator.display(data)
    return found
