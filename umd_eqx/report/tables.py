"""The tables of the result files in `eval/`, as a section of the page of a run.

A result file that should be shown has an entry `table`: a title, the names of the columns, rows of texts, the first of
which names the row, and notes.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypedDict

from umd_eqx.report.textable import text_table


class Table(TypedDict):
    """A table of texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def as_text(table: Table) -> str:
    """Returns a table as lines: its title, `text_table` at the width of the terminal, and its notes."""
    return "\n".join([table["title"], text_table(table["columns"], table["rows"]), *table["notes"]])


def result_tables(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the section of all tables in the results of a run, oldest first; empty without any.

    They are the entries `"table"` of the `measurements` of the run. Others are ignored.
    """
    parts = [_html(table) for result in measured.values() if (table := _table_of(result)) is not None]
    return f"<section>\n<h2>Benchmarks</h2>\n{''.join(parts)}</section>\n" if parts else ""


def _table_of(result: Mapping[str, Any]) -> Table | None:
    table: Any = result.get("table")
    if not isinstance(table, dict):
        return None
    rows = table.get("rows")
    fine = (
        isinstance(table.get("title"), str)
        and _texts(table.get("columns"))
        and _texts(table.get("notes"))
        and isinstance(rows, list)
        and all(_texts(row) and row for row in rows)
    )
    return Table(**{name: table[name] for name in Table.__annotations__}) if fine else None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _html(table: Table) -> str:
    head = _cells("th", ' scope="col"', table["columns"])
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{_cells("td", "", row[1:])}</tr>\n' for row in table["rows"]
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in table["notes"])
    body = f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{rows}</tbody>"
    return f'<h3>{escape(table["title"])}</h3>\n<div class="scroll">\n<table>\n{body}\n</table>\n</div>\n{notes}'


def _cells(tag: str, attributes: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}{attributes}>{escape(text)}</{tag}>" for text in texts)
