"""Reading a run directory for reporting."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from umd_eqx.core.display import Display
from umd_eqx.core.json_files import read_json
from umd_eqx.report.metrics import read_metrics

UNTRAINED = "eval/untrained/"
"""The prefix, instead of `eval/`, of the names of metrics that were computed for the untrained network."""


@dataclass(frozen=True)
class RunDirectory:
    """The content of a run directory. Anything that is missing or cannot be read is empty or None.

    - `path`: the run directory.
    - `rows`: the lines of `metrics.jsonl`, oldest first.
    - `config`, `environment`: the content of the two JSON files.
    - `displays`: how the metrics of each evaluation are displayed, by the name of the evaluation.
    - `settings`: the settings, flat, of evaluations that were made after the run (`umd_eqx.runs.measured`), likewise.
    """

    path: Path
    rows: list[dict[str, Any]]
    config: Any
    environment: Any
    displays: Mapping[str, Display] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        displays: Mapping[str, Display] | None = None,
        *,
        config: Any = None,
        environment: Any = None,
    ) -> "RunDirectory":
        """Reads a run directory.

        **Arguments:**

        - `path`: a local folder.
        - `displays`: how the metrics of each evaluation are displayed. None: only in a table.
        - `config`, `environment`: the content of `config.json` and of `environment.json`; None reads the file.

        Raises `BadInput` if `metrics.jsonl` is corrupt before its last line.
        """
        folder = Path(path)
        config = _read_json(folder / "config.json") if config is None else config
        environment = _read_json(folder / "environment.json") if environment is None else environment
        return cls(folder, read_metrics(folder / "metrics.jsonl"), config, environment, displays or {})

    def fact(self, name: str) -> Any:
        """Looks up a fact in `environment.json`, then in `config.json`, then in its `"config"`. None if it is missing.

        **Arguments:**

        - `name`: the key of the fact, at the top level.
        """
        inner = self.config.get("config") if isinstance(self.config, Mapping) else None
        for facts in (self.environment, self.config, inner):
            if isinstance(facts, Mapping) and facts.get(name) is not None:
                return facts[name]
        return None

    def count(self, name: str) -> int | None:
        """Returns a fact as an integer, or None if it is missing or not a finite number.

        **Arguments:**

        - `name`: the key of the fact, at the top level.
        """
        value = self.fact(name)
        return int(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def names(self) -> list[str]:
        """Returns the names of all metrics, in the order of their first occurrence."""
        names = dict.fromkeys(name for row in self.rows for name in row if name != "step")
        return [name for name in names if not name.startswith(UNTRAINED)]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Returns the steps at which a metric was written, and its values; null becomes NaN.

        Metrics of the untrained network are assigned to step 0, whenever they were computed.

        **Arguments:**

        - `name`: one of `names()`; the curve of any other name is empty.
        """
        untrained = UNTRAINED + name.removeprefix("eval/") if name.startswith("eval/") else None
        first = [(0.0, number(row[untrained])) for row in self.rows if untrained in row][:1]
        points = first + [(float(row["step"]), number(row[name])) for row in self.rows if name in row]
        return [step for step, _ in points], [value for _, value in points]

    def evaluations(self) -> dict[str, list[str]]:
        """Returns the names of the metrics of each evaluation, without the prefix `eval/<evaluation>/`."""
        found: dict[str, list[str]] = {}
        for name in self.names():
            if name.startswith("eval/"):
                evaluation, _, number = name.removeprefix("eval/").partition("/")
                found.setdefault(evaluation, []).append(number)
        return found

    def display(self, evaluation: str) -> Display:
        """Returns how the metrics of an evaluation are displayed."""
        # An evaluation repeated with other settings has these in brackets after its name.
        return self.displays.get(evaluation.partition("[")[0], Display())

    def better(self, name: str) -> Literal["higher", "lower"] | None:
        """Returns which values of a metric are better: of losses lower ones, and of evaluations as they declare.

        **Arguments:**

        - `name`: the whole name of the metric.
        """
        kind, _, rest = name.partition("/")
        if kind == "train":
            return "lower" if rest == "loss" else None
        if kind != "eval":
            return None
        evaluation, _, number = rest.removeprefix("untrained/").partition("/")
        return self.display(evaluation).better(number)

    def headlines(self) -> dict[str, str]:
        """Returns the names and descriptions of the headline metrics of the run, at most one per evaluation.

        The configuration determines the headline before anything is measured; it is not the best of several metrics.
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
        """Returns the last value of each metric by name, and the last step; null becomes None."""
        last: dict[str, Any] = {}
        for row in self.rows:
            last |= row
        return last

    def last(self, name: str) -> float | None:
        """Returns the last finite value of a metric, or None.

        **Arguments:**

        - `name`: as for `curve`.
        """
        return next((value for value in reversed(self.curve(name)[1]) if math.isfinite(value)), None)


def number(value: Any) -> float:
    """Returns a JSON value as a float; NaN for null and anything else that is not a number.

    **Arguments:**

    - `value`: a value from `json`.
    """
    return float(value) if isinstance(value, int | float) else math.nan


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
