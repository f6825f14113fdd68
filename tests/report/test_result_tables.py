"""The tables of result files on the page of a run."""

from umd_eqx.report.rundir import RunDirectory
from umd_eqx.report.tables import Table, as_text, result_tables
from umd_eqx.report.webpage import write_webpage

TABLE = Table(
    title="Transfer <1>",
    columns=["set", "10 shots", "100"],
    rows=[["cifar100", "1.5 ± 0.2", "-"], ["d&d", "31.0", "4"]],
    notes=["d&d: not measured"],
)


def test_a_table_is_aligned_as_text():
    said = as_text(TABLE).splitlines()
    head, *rows = ["set        10 shots  100", "cifar100  1.5 ± 0.2    -", "d&d            31.0    4"]
    assert said == ["Transfer <1>", head, *rows, "d&d: not measured"]


def test_the_page_shows_the_tables_of_results_and_ignores_all_else(tmp_path):
    wrong = [{}, {"table": 1}, {"table": TABLE | {"rows": [[1]]}}, {"table": {}}, {"table": TABLE | {"rows": [[]]}}]
    assert result_tables({str(i): result for i, result in enumerate(wrong)}) == ""
    other = {"table": TABLE | {"title": "Other"}}
    page = write_webpage(RunDirectory.read(tmp_path), {"a": {"table": TABLE}, "b": wrong[1], "c": other}).read_text()
    assert "<h2>Benchmarks</h2>" in page
    assert "<h3>Transfer &lt;1&gt;</h3>" in page
    assert '<tr><th scope="row">d&amp;d</th><td>31.0</td><td>4</td></tr>' in page
    assert '<p class="note">d&amp;d: not measured</p>' in page
    assert page.count("<h3>Other</h3>") == 1
