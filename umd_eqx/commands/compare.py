"""`experiments/compare.py`: several runs in one table, one set of curves and one page."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from umd_eqx.core.errors import disk_errors, require_writable
from umd_eqx.core.files import save_json, write_atomically
from umd_eqx.report.comparepage import comparison_page, shown_result, shown_setting
from umd_eqx.report.comparison import (
    Comparison,
    Group,
    Metric,
    best_groups,
    count_of,
    main_metrics,
    main_settings,
    metrics_of,
    spread,
)
from umd_eqx.report.textable import text_table
from umd_eqx.runs.comparing import compare

MAX_SETTINGS, MAX_METRICS = 12, 8
"""The number of settings and of metrics that are printed; the page has all of them."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare several runs: the settings that differ, the results, the curves and the pictures."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Run directories. Runs whose recipes differ only in the seed are one group, with mean and spread."""
    out: str = "compare.html"
    """Output file for the page, which contains all of its pictures."""
    json: str | None = None
    """Write the recipe and the results of each group to this JSON file."""


def compare_runs(words: list[str], types: Mapping[str, type] | None = None) -> int:
    """Runs the command and returns its exit code. `types` are user-defined classes that the runs may contain.

    **Raises:** `BadInput` if a run does not exist or cannot be read, or if a file cannot be written.
    """
    command = tyro.cli(Compare, args=words, description="Compare several runs on one page.")
    require_writable("out", command.out)
    if command.json is not None:
        require_writable("json", command.json)
    comparison = compare(command.runs, (types or {}).values())
    print(compared_text(comparison))
    with disk_errors(Path(command.out).parent, "out", on_retry=""):
        write_atomically(command.out, comparison_page(comparison))
        if command.json is not None:
            save_json(command.json, compared_rows(comparison))
    print(f"\npage: {command.out}")
    return 0


def compared_text(comparison: Comparison, width: int | None = None) -> str:
    """Returns the settings that differ and the results of a comparison as text (`main_settings`, `main_metrics`).

    **Arguments:**

    - `comparison`: the groups of runs.
    - `width`: the number of characters of a line; None is that of the terminal.
    """
    groups, parts = comparison.groups, [f"note: {note}" for note in comparison.notes]
    parts += [f"{g.name}: {count_of(g)}, {', '.join(g.labels)}" for g in groups if len(g.runs) > 1]
    if groups[0].settings:
        names = main_settings(comparison)[:MAX_SETTINGS]
        rows = [[group.name, *(shown_setting(group.settings[name]) for name in names)] for group in groups]
        parts.append("\n" + text_table(["settings that differ", *names], rows, width))
        if more := len(groups[0].settings) - len(names):
            parts.append(f"({more} more settings that differ are on the page)")
    metrics = main_metrics(comparison)[:MAX_METRICS]
    if not metrics:
        return "\n".join([*parts, "\nno evaluation yet"]).lstrip("\n")
    best = {metric.name: best_groups(comparison, metric) for metric in metrics}
    head = ["results (* best)", "", *(metric.name.removeprefix("eval/") for metric in metrics)]
    rows = [
        [g.name, count_of(g), *(shown_result(g, m) + ("*" if g.name in best[m.name] else " ") for m in metrics)]
        for g in groups
    ]
    parts.append("\n" + text_table(head, rows, width))
    if more := len(metrics_of(comparison.runs)) - len(metrics):
        parts.append(f"({more} more metrics are on the page)")
    return "\n".join(parts).lstrip("\n")


def compared_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns a comparison as plain data, with an entry for each group.

    **Arguments:**

    - `comparison`: the groups of runs.
    """
    metrics = metrics_of(comparison.runs)
    best = {metric.name: best_groups(comparison, metric) for metric in metrics}
    return [
        {
            "group": group.name,
            "runs": [str(run.path) for run in group.runs],
            "seeds": list(group.seeds),
            "steps": [run.rows[-1]["step"] if run.rows else 0 for run in group.runs],
            "settings": dict(group.settings),
            "metrics": {m.name: _row(group, m, group.name in best[m.name]) for m in metrics if group.finals(m.name)},
            "notes": list(comparison.notes),
            "recipe": group.recipe,
        }
        for group in comparison.groups
    ]


def _row(group: Group, metric: Metric, best: bool) -> dict[str, Any]:
    values: Sequence[float] = group.finals(metric.name)
    found = spread(values)
    assert found is not None
    plain = [value if value == value else None for value in values]  # JSON has no NaN
    mean = found.mean if found.mean == found.mean else None
    std = found.std if found.std == found.std else None
    return {"mean": mean, "std": std, "n": found.n, "values": plain, "better": metric.better, "best": best}
