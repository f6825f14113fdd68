"""What an evaluation shows of itself: which numbers stand for it, which are drawn together, what its pictures are.

An evaluator says it (`AbstractEvaluator.display`), and the report draws it without knowing any of them by name.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Chart:
    """Numbers of an evaluation that are drawn as one chart.

    - `name`: letters, digits and `-`, unlike that of any other chart of the evaluation.
    - `title`: may name groups of the pattern in braces; the first number then says what they are.
    - `pattern`: a regular expression that the whole name of a number fits, without `eval/<evaluation>/`. Its group
      `line` names the line. With a group `x`, a number, lines are drawn against that, of the last evaluation alone.
    - `unit`: of the values; a share is shown in percent.
    - `x_label`: below the axis.
    - `first_as_level`: whether the value at step 0, before training, is drawn on as a dotted level.
    - `folded`: what the numbers are called in the table of all numbers, where they are folded away; None: they are not.
    """

    name: str
    title: str
    pattern: str
    unit: Literal["", "percent", "share"] = ""
    x_label: str = "step"
    first_as_level: bool = False
    folded: str | None = None

    @property
    def against_x(self) -> bool:
        """Whether lines are drawn against a number that is in the names, and not against the step."""
        return "x" in re.compile(self.pattern).groupindex


@dataclasses.dataclass(frozen=True)
class Section:
    """One or two charts under a heading.

    - `leading`: whether it comes before the curves of the training.
    - `note`, `headline_note`, `baseline_note`: below the charts: always; in front where a headline is drawn; behind
      where a baseline is.
    """

    title: str
    charts: tuple[Chart, ...]
    leading: bool = False
    note: str = ""
    headline_note: str = ""
    baseline_note: str = ""


@dataclasses.dataclass(frozen=True)
class Display:
    """What an evaluation shows of itself. By default its numbers are in the table of all numbers, and nowhere else.

    - `sections`: its charts.
    - `captions`: of its pictures, by their names.
    - `title`: what it is called in a headline; None: its name.
    - `headline`: a pattern with a group `line`, of the numbers of which one stands for the run; None: none does.
    - `headline_text`: what that number is, behind the evaluation's title; `{line}` is the group.
    - `preferred`: which `line` it is, the first that was measured; if none was, the first number that was.
    - `baseline`: a pattern of the lines that do not depend on the network, drawn as levels.
    - `percent`: a pattern of the numbers that are percent.
    - `warning`: below the charts where a number that fits the pattern `warned` was measured.
    """

    sections: tuple[Section, ...] = ()
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    title: str | None = None
    headline: str | None = None
    headline_text: str = "{line}"
    preferred: tuple[str, ...] = ()
    baseline: str | None = None
    percent: str | None = None
    warned: str | None = None
    warning: str | None = None

    def is_baseline(self, line: str) -> bool:
        """Whether a line does not depend on the network."""
        return self.baseline is not None and re.fullmatch(self.baseline, line) is not None

    def is_percent(self, number: str) -> bool:
        """Whether a number is in percent."""
        return self.percent is not None and re.fullmatch(self.percent, number) is not None

    def headline_of(self, numbers: Sequence[str]) -> tuple[str, str] | None:
        """Of the numbers of an evaluation, the one that stands for it, with its `line`; None where none does."""
        if self.headline is None:
            return None
        found = {match["line"]: name for name in numbers if (match := re.fullmatch(self.headline, name))}
        lines = [line for line in found if not self.is_baseline(line)]
        if not lines:
            return None
        line = next(line for line in (*self.preferred, *lines) if line in lines)
        return found[line], line
