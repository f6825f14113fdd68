"""Tables as plain text and as Markdown."""

import shutil
from collections.abc import Sequence

Row = Sequence[str]


def text_table(head: Row, rows: Sequence[Row], width: int | None = None) -> str:
    """Returns aligned lines: the first column to the left, all others to the right.

    A table that is too wide is divided into several, one below the other, each with the first column.

    **Arguments:**

    - `head`, `rows`: the cells, of equal number.
    - `width`: the number of characters of a line; None is that of the terminal.
    """
    width = shutil.get_terminal_size((120, 24)).columns if width is None else width
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(head)):
        taken = widths[0] + sum(2 + widths[c] for c in blocks[-1])
        if blocks[-1] and taken + 2 + widths[column] > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join("\n".join(_line(line, widths, columns) for line in lines) for columns in blocks)


def markdown_table(head: Row, rows: Sequence[Row]) -> str:
    """Returns a table in Markdown.

    **Arguments:**

    - `head`, `rows`: the cells, of equal number, as plain text.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _line(cells: Row, widths: Sequence[int], columns: Sequence[int]) -> str:
    first = f"{cells[0]:<{widths[0]}}"
    return "  ".join([first, *(f"{cells[column]:>{widths[column]}}" for column in columns)]).rstrip()
