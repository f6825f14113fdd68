"""The results of measurements in a run directory."""

import json
import os

from umd_eqx.report.measurements import measurements


def test_results_are_read_oldest_first_and_all_else_is_ignored(tmp_path):
    assert measurements(tmp_path) == {}
    folder = tmp_path / "eval"
    folder.mkdir()
    for i, text in enumerate(["[", "[]", "3", '{"table": 1}', "[3]", "[{}, {}]", "[" * 100_000]):
        (folder / f"{i}.json").write_text(text)
    (folder / "note.txt").write_text("[{}]")
    (folder / "unfinished-a.json").mkdir()
    for name, when in (("newer", 20.0), ("older", 10.0)):
        (folder / f"{name}.json").write_text(json.dumps([{"from": name}]))
        os.utime(folder / f"{name}.json", (when, when))
    assert [*measurements(tmp_path).items()] == [("older", {"from": "older"}), ("newer", {"from": "newer"})]
