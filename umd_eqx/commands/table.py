"""`experiments/table.py`: the results of runs beside the published ones."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.report.comparison import Spread
from umd_eqx.report.textable import markdown_table, text_table
from umd_eqx.runs.beside_paper import Figure, TableRow, beside_paper
from umd_eqx.runs.comparing import compare

HEAD = ("system", "probe, paper", "here", "FID, paper", "here", "IS, paper", "here", "runs", "differs by")
"""The columns of the table."""

NOTE = (
    "Paper: arXiv 2406.17688, 100-shot probe on ImageNet; FID and Inception score of 10,240 samples after fine-tuning. "
    "Means ± standard deviations over seeds. A result that was measured with other settings says so under `differs by`."
)
"""The text below the table."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Tabulate the results of runs beside the published ones."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Run directories. Runs whose recipes differ only in the seed are one row, with mean and spread."""
    cfg_scale: float = 2.0
    """Guidance scale of the FID and Inception score shown, which the paper does not state."""
    markdown: bool = False
    """Print the table in Markdown."""
    json: str | None = None
    """Write the rows, with the recipes of the runs, to this JSON file."""


def tabulate_runs(words: list[str], types: Mapping[str, type] | None = None) -> int:
    """Runs the command and returns its exit code. `types` are user-defined classes that the runs may contain.

    **Raises:** `BadInput` if a run does not exist or cannot be read, or if a file cannot be written.
    """
    command = tyro.cli(Table, args=words, description="Tabulate the results of runs beside the published ones.")
    if not 0 <= command.cfg_scale < float("inf"):
        raise BadInput("cfg_scale", f"{command.cfg_scale} is not a guidance scale", "Use 0 or more; 1 is no guidance")
    if command.json is not None:
        require_writable("json", command.json)
    comparison = compare(command.runs, (types or {}).values())
    rows = beside_paper(comparison, command.cfg_scale)
    cells = [_cells(row) for row in rows]
    print("\n".join(f"note: {note}" for note in comparison.notes) + "\n" * bool(comparison.notes))
    print(markdown_table(HEAD, cells) if command.markdown else text_table(HEAD, cells))
    print(f"\n{NOTE}")
    if command.json is not None:
        with disk_errors(Path(command.json).parent, "json", on_retry=""):
            save_json(command.json, [_plain(row) for row in rows])
    return 0


def _cells(row: TableRow) -> list[str]:
    paper = row.paper
    cells = [row.system]
    for published, ours, unit in (
        (paper and paper.probe, row.probe, "%"),
        (paper and paper.fid, row.fid, ""),
        (paper and paper.inception_score, row.inception_score, ""),
    ):
        cells += ["-" if published is None else f"{published}{unit}", _shown(ours, named=paper is None)]
    labels = [label for group in row.groups for label in group.labels]
    return [*cells, ", ".join(labels) or "-", "; ".join(row.differs) or "-"]


def _shown(figure: Figure | None, *, named: bool) -> str:
    if figure is None:
        return "-"
    seeds = f" ({figure.spread.n} runs)" if figure.spread.n > 1 else ""
    shown = figure.spread.shown(percent=figure.metric.percent) + seeds
    if not named:
        return shown
    # Distances of other numbers of samples must not be confused: their protocol is named, too.
    protocol = figure.metric.name.removeprefix("eval/").removeprefix("generation/").partition("/")[0].partition("-")[0]
    return f"{shown} {figure.metric.headline or ', '.join([figure.metric.number.rpartition('/')[2], protocol])}"


def _plain(row: TableRow) -> dict[str, Any]:
    return {
        "system": row.system,
        "paper": None if row.paper is None else dataclasses.asdict(row.paper),
        "probe": _figure(row.probe),
        "fid": _figure(row.fid),
        "is": _figure(row.inception_score),
        "runs": [str(run.path) for group in row.groups for run in group.runs],
        "seeds": [seed for group in row.groups for seed in group.seeds],
        "differs": list(row.differs),
        "recipes": [group.recipe for group in row.groups],
    }


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else {"metric": figure.metric.name, **_spread(figure.spread)}


def _spread(spread: Spread) -> dict[str, Any]:
    numbers = {"mean": spread.mean, "std": spread.std}  # JSON has no NaN
    return {name: None if value is None or value != value else value for name, value in numbers.items()} | {
        "n": spread.n
    }
