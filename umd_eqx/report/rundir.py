"""What lies in a run directory, read for showing it."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umd_eqx.report.metrics import read_metrics

UNTRAINED = "eval/untrained/"
"""What the names of numbers begin with that were measured on the first weights, in the place of `eval/`."""


@dataclass(frozen=True)
class RunDirectory:
    """A run as its files tell it. Whatever is missing or cannot be read is empty or None.

    - `path`: the folder.
    - `rows`: the lines of `metrics.jsonl`, oldest first.
    - `config`, `environment`: what the two JSON files hold.
    """

    path: Path
    rows: list[dict[str, Any]]
    config: Any
    environment: Any

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """Read a run directory.

        **Arguments:**

        - `path`: a local folder.

        Raises `BadInput` if `metrics.jsonl` is corrupt before its last line.
        """
        folder = Path(path)
        config, environment = _read_json(folder / "config.json"), _read_json(folder / "environment.json")
        return cls(folder, read_metrics(folder / "metrics.jsonl"), config, environment)

    def fact(self, name: str) -> Any:
        """A fact from the top level of `environment.json`, else of `config.json`, else of its `"config"`; or None.

        **Arguments:**

        - `name`: its key.
        """
        inner = self.config.get("config") if isinstance(self.config, Mapping) else None
        for place in (self.environment, self.config, inner):
            if isinstance(place, Mapping) and place.get(name) is not None:
                return place[name]
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

    def headlines(self) -> list[str]:
        """The names of the numbers that stand for the run: the accuracy of each few-shot probe on one kind of features.

        The kind is fixed by the configuration before anything is measured (`FewShot.headline`); it is not the best of
        several. Where the configuration says nothing, it is the class tokens, as in the reference.
        """
        kinds: dict[str, list[str]] = {}
        for name in self.names():
            match = re.fullmatch(r"eval/(.+)/([^/]+)/top1", name)
            if match and not match[2].startswith("raw_pixels"):
                kinds.setdefault(match[1], []).append(match[2])
        evaluators = self.fact("eval")
        found = []
        for evaluation, measured in kinds.items():
            # What was measured again, by other settings, has these in brackets behind its name.
            name = evaluation.partition("[")[0]
            settings = evaluators.get(name) if isinstance(evaluators, Mapping) else None
            settings = settings if isinstance(settings, Mapping) else {}
            features = settings.get("features")
            wanted = [settings.get("headline"), *(features if isinstance(features, list) else []), "class_tokens"]
            found.append(f"eval/{evaluation}/{next(kind for kind in (*wanted, *measured) if kind in measured)}/top1")
        return found

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
