"""What lies in a run directory, read for showing it."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umd_eqx.core.display import Display
from umd_eqx.report.metrics import read_metrics

UNTRAINED = "eval/untrained/"
"""What the names of numbers begin with that were measured on the first weights, in the place of `eval/`."""


@dataclass(frozen=True)
class RunDirectory:
    """A run as its files tell it. Whatever is missing or cannot be read is empty or None.

    - `path`: the folder.
    - `rows`: the lines of `metrics.jsonl`, oldest first.
    - `config`, `environment`: what the two JSON files hold.
    - `displays`: what its evaluations show of themselves, by their names.
    """

    path: Path
    rows: list[dict[str, Any]]
    config: Any
    environment: Any
    displays: Mapping[str, Display] = field(default_factory=dict)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], displays: Mapping[str, Display] | None = None, *, config: Any = None
    ) -> "RunDirectory":
        """Read a run directory.

        **Arguments:**

        - `path`: a local folder.
        - `displays`: what its evaluations show of themselves. None: their numbers are in a table, and that is all.
        - `config`: what its `config.json` holds, where that was read already.

        Raises `BadInput` if `metrics.jsonl` is corrupt before its last line.
        """
        folder = Path(path)
        config = _read_json(folder / "config.json") if config is None else config
        environment = _read_json(folder / "environment.json")
        return cls(folder, read_metrics(folder / "metrics.jsonl"), config, environment, displays or {})

    def fact(self, name: str) -> Any:
        """A fact from the top level of `environment.json`, else of `config.json`, else of its `"config"`; or None.

        **Arguments:**

        - `name`: its key.
        """
        inner = self.config.get("config") if isinstance(self.config, Mapping) else None
        for facts in (self.environment, self.config, inner):
            if isinstance(facts, Mapping) and facts.get(name) is not None:
                return facts[name]
        return None

    def count(self, name: str) -> int | None:
        """A fact that is a number of things, or None.

        **Arguments:**

        - `name`: its key.
        """
        value = self.fact(name)
        return int(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def names(self) -> list[str]:
        """The names of all numbers, in the order in which they first came."""
        names = dict.fromkeys(name for row in self.rows for name in row if name != "step")
        return [name for name in names if not name.startswith(UNTRAINED)]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """The steps at which a number was written and its values there; null is NaN.

        What was measured on the untrained network, whenever that was, belongs to step 0.

        **Arguments:**

        - `name`: one of `names()`; any other has no points.
        """
        untrained = UNTRAINED + name.removeprefix("eval/") if name.startswith("eval/") else None
        first = [(0.0, number(row[untrained])) for row in self.rows if untrained in row][:1]
        points = first + [(float(row["step"]), number(row[name])) for row in self.rows if name in row]
        return [step for step, _ in points], [value for _, value in points]

    def evaluations(self) -> dict[str, list[str]]:
        """The names of the numbers of each evaluation, without `eval/<evaluation>/`, by the evaluation's name."""
        found: dict[str, list[str]] = {}
        for name in self.names():
            if name.startswith("eval/"):
                evaluation, _, number = name.removeprefix("eval/").partition("/")
                found.setdefault(evaluation, []).append(number)
        return found

    def display(self, evaluation: str) -> Display:
        """What an evaluation shows of itself."""
        # What was measured again, by other settings, has these in brackets behind its name.
        return self.displays.get(evaluation.partition("[")[0], Display())

    def headlines(self) -> dict[str, str]:
        """The names of the numbers that stand for the run, at most one of each evaluation, and what they are.

        Which it is was fixed by the configuration before anything was measured; it is not the best of several.
        """
        found = {}
        for evaluation, numbers in self.evaluations().items():
            display = self.display(evaluation)
            if (headline := display.headline_of(numbers)) is not None:
                number, line = headline
                title = evaluation if display.title is None or "[" in evaluation else display.title
                text = display.headline_text.format(line=line.replace("_", " "))
                found[f"eval/{evaluation}/{number}"] = f"{title} {text}"
        return found

    def last_values(self) -> dict[str, Any]:
        """The last value of each number by its name, and the last step; null is None."""
        last: dict[str, Any] = {}
        for row in self.rows:
            last |= row
        return last

    def last(self, name: str) -> float | None:
        """The last finite value of a number, or None.

        **Arguments:**

        - `name`: as for `curve`.
        """
        return next((value for value in reversed(self.curve(name)[1]) if math.isfinite(value)), None)


def number(value: Any) -> float:
    """What a file holds for a number, as a float; NaN for null or anything else.

    **Arguments:**

    - `value`: as `json` read it.
    """
    return float(value) if isinstance(value, int | float) else math.nan


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
