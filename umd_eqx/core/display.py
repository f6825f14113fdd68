"""How the results of an evaluation are displayed: its headline, its charts, and the captions of its images.

An evaluator declares this (`AbstractEvaluator.display`); the report contains no code for any particular evaluator.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Chart:
    """Metrics of an evaluation that are drawn as one chart.

    - `name`: letters, digits and `-`, unique among the charts of the evaluation.
    - `title`: may contain groups of the pattern in braces, filled in from the first matching metric.
    - `pattern`: a regular expression that matches the whole name of a metric, without `eval/<evaluation>/`. Its group
      `line` names the line. If it has a numeric group `x`, lines are drawn against x, for the last evaluation only.
    - `unit`: the unit of the values; a share is displayed in percent.
    - `x_label`: the label of the horizontal axis.
    - `first_as_level`: whether the value at step 0, before training, is extended as a dotted horizontal line.
    - `folded`: the heading under which the metrics are collapsed in the table of all metrics; None: not collapsed.
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
        """Whether lines are drawn against a number in the metrics' names instead of the step."""
        return "x" in re.compile(self.pattern).groupindex

    def folds(self, number: str) -> bool:
        """Whether a metric, by its name within the evaluation, is one of those that are collapsed in the table."""
        return self.folded is not None and re.fullmatch(self.pattern, number) is not None


@dataclasses.dataclass(frozen=True)
class Section:
    """One or two charts under a heading.

    - `leading`: whether the section precedes the training curves.
    - `note`: the text below the charts.
    - `headline_note`: precedes `note` if a headline is drawn.
    - `baseline_note`: follows `note` if a baseline is drawn.
    """

    title: str
    charts: tuple[Chart, ...]
    leading: bool = False
    note: str = ""
    headline_note: str = ""
    baseline_note: str = ""


@dataclasses.dataclass(frozen=True)
class Display:
    """How the results of an evaluation are displayed. By default its metrics appear only in the table of all metrics.

    - `sections`: its charts.
    - `captions`: the captions of its images, by image name.
    - `title`: the evaluation's title in a headline; None: its name.
    - `headline`: a pattern with a group `line` that matches the candidates for the headline metric; None: no headline.
    - `headline_text`: the description of that metric after the evaluation's title; `{line}` is the group.
    - `preferred`: values of `line` in order of preference. If none of them was measured, the first candidate is used.
    - `baseline`: a pattern of the lines that do not depend on the network, drawn as horizontal lines.
    - `percent`: a pattern of the metrics that are percentages.
    - `higher`, `lower`: patterns of the metrics of which a higher or a lower value is better.
    - `warning`: the text below the charts if a metric that matches the pattern `warned` was measured.
    """

    sections: tuple[Section, ...] = ()
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    title: str | None = None
    headline: str | None = None
    headline_text: str = "{line}"
    preferred: tuple[str, ...] = ()
    baseline: str | None = None
    percent: str | None = None
    higher: str | None = None
    lower: str | None = None
    warned: str | None = None
    warning: str | None = None

    def is_baseline(self, line: str) -> bool:
        """Whether a line is a baseline, which does not depend on the network."""
        return self.baseline is not None and re.fullmatch(self.baseline, line) is not None

    def is_percent(self, number: str) -> bool:
        """Whether a metric is a percentage."""
        return self.percent is not None and re.fullmatch(self.percent, number) is not None

    def better(self, number: str) -> Literal["higher", "lower"] | None:
        """Returns which values of a metric are better, or None where that is not known."""
        if self.higher is not None and re.fullmatch(self.higher, number):
            return "higher"
        return "lower" if self.lower is not None and re.fullmatch(self.lower, number) else None

    def headline_of(self, numbers: Sequence[str]) -> tuple[str, str] | None:
        """Returns the name of the headline metric among those of an evaluation, with its `line`; None without one."""
        if self.headline is None:
            return None
        found = {match["line"]: name for name in numbers if (match := re.fullmatch(self.headline, name))}
        lines = [line for line in found if not self.is_baseline(line)]
        if not lines:
            return None
        line = next(line for line in (*self.preferred, *lines) if line in lines)
        return found[line], line
