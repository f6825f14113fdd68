"""Tables as text: no column is lost, however narrow the terminal."""

from umd_eqx.report.textable import markdown_table, text_table

HEAD, ROWS = ["", "a", "bb", "c"], [["first", "1", "22", "3"], ["x", "10", "2", "300000"]]


def test_a_table_that_fits_is_one():
    assert text_table(HEAD, ROWS, 80).splitlines() == [
        "        a  bb       c",
        "first   1  22       3",
        "x      10   2  300000",
    ]


def test_a_narrow_terminal_divides_it_and_keeps_every_cell():
    for width in (1, 12, 14, 20):
        text = text_table(HEAD, ROWS, width)
        assert len(text.split("\n\n")) > 1
        cells = [cell for cell in text.split() if cell not in ("first", "x")]
        assert sorted(cells) == sorted([*HEAD[1:], *ROWS[0][1:], *ROWS[1][1:]])
        assert all(block.splitlines()[1].startswith("first") for block in text.split("\n\n"))
    assert max(map(len, text_table(HEAD, ROWS, 14).splitlines())) <= 14


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_table(["a"], [["x|y"]]).splitlines() == ["| a |", "| --- |", "| x\\|y |"]
