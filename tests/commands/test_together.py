"""Commands that are started as several processes."""

import pytest

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.together import processes_of
from umd_eqx.core.errors import BadInput
from umd_eqx.core.processes import ProcessesConfig


@pytest.mark.parametrize("separator", ["-", "_"])
def test_the_flags_are_read_before_all_others(separator):
    flag = f"--sharding.num{separator}processes"
    words = [
        "umd",
        "--optim.lr",
        "1",
        "--sharding.coordinator=host:12",
        flag,
        "2",
        f"--sharding.process{separator}id=1",
    ]
    assert processes_of(words) == ProcessesConfig("host:12", 2, 1)
    assert processes_of(["umd", "--sharding.data", "2"]) == ProcessesConfig()


def test_a_number_that_is_none_is_refused():
    with pytest.raises(BadInput, match="'two' is not a number"):
        processes_of(["--sharding.num-processes", "two"])


@pytest.mark.parametrize(("process_id", "lines"), [("0", 1), ("1", 0)])
def test_a_command_for_one_process_is_refused_by_the_first_of_several(process_id, lines, monkeypatch, capsys):
    for name, value in {"NTASKS": "2", "PROCID": process_id, "STEP_NODELIST": "node[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SystemExit) as end:
        exit_with(lambda _: pytest.fail("the command was run"), [])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == lines
    assert "--sharding.num-processes: SLURM has started several processes" in error or not lines
