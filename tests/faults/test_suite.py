"""The fault suite: its quick trials pass, and it counts, goes on and compares as it says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import example_fault
from faults.__main__ import main
from faults.suite import all_faults
from faults.suite.base import Fault, Outcome
from faults.suite.runner import RESULTS, Results, Row, run_fault
from faults.suite.runs import Reference, differences, reference
from faults.suite.sources import ROOT, code_digest
from faults.tiny import cache_dir

FAULTS = all_faults()
FAST = ("signals", "damage", "changed", "hostile", "memory")
"""Those whose quick trials take less than a minute. Killed runs and full disks have tests of their own."""
HANGS = "still running after 2 s, ended"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of the quick trials, which share the undisturbed runs in it."""
    cache_dir()  # the processes of the trials inherit its name
    return tmp_path_factory.mktemp("work")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "tests.faults", *words]
    return subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(
    "fault",
    [fault if fault.name in FAST else pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS],
    ids=[fault.name for fault in FAULTS],
)
def test_each_fault_is_survived_in_its_quick_trials(fault: Fault, work: Path, tmp_path: Path):
    rows = tmp_path / "rows.json"
    done = command("--quick", "--only", fault.name, "--work", str(work), "--json", str(rows))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(rows.read_text())
    assert row["fault"] == fault.name
    assert row["passed"] == row["tried"] == len(fault.trials(True))
    assert f"| {fault.title} | {row['note']} |" in done.stdout


def test_what_differs_from_the_undisturbed_run_is_named(work: Path, tmp_path: Path):
    whole = reference(work, "umd")  # as the quick trials left it
    run_dir = Path(shutil.copytree(whole.run_dir, tmp_path / "run"))
    batches = Path(f"{whole.run_dir}.batches").read_text()

    def different(found: Reference = whole) -> str:
        return differences(run_dir, "umd", found)

    Path(f"{run_dir}.batches").write_text(batches)
    assert different() == ""
    Path(f"{run_dir}.batches").write_text(batches + "3 another\n")
    assert different() == "batches"
    Path(f"{run_dir}.batches").write_text(batches)
    metrics = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text(metrics.replace('"train/loss": 0.8', '"train/loss": 0.9'))
    assert different() == "losses"
    (run_dir / "metrics.jsonl").write_text(metrics)
    others = {24: {part: "another" for part in whole.digests[24]}}
    assert different(whole._replace(digests=others)) == "parameters, ema, optimiser, position"
    assert len({*map(str, whole.digests.values())}) == 24  # each step has another state
    shutil.rmtree(run_dir / "checkpoints/24")
    assert different() == "step 23, parameters, ema, optimiser, position"


def run_example(work: Path, *, quick: bool = False, code: str = "code") -> tuple[Row, list[str]]:
    told: list[str] = []
    options = {"quick": quick, "work": work, "results": Results(work / RESULTS), "limit": 2.0}
    return run_fault(example_fault.FAULT, code, tell=told.append, **options), told


def is_gone(pid: int) -> bool:
    """Whether a process ends within seconds; its parent may not have looked at it yet."""
    state = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_trials_that_fail_raise_hang_and_crash_are_counted_and_the_others_go_on(tmp_path):
    row, told = run_example(tmp_path)
    assert [outcome.passed for outcome in row.outcomes] == [True, False, False, False, False, True]
    ended = "the process of the trials ended with code 3"
    notes = ["seen", "another state", "SystemExit: an error", HANGS, ended, "seen"]
    assert [outcome.note for outcome in row.outcomes] == notes
    assert row.outcomes[0].figures == {"seconds": 1.5}
    assert row.fault.summary(row.outcomes) == "2/6, worst 1.5 s"
    assert row.failures[0] == "example fails: another state"
    assert len(told) == 6
    assert (tmp_path / "example/fails/evidence").exists()
    assert not (tmp_path / "example/passes").exists()
    assert is_gone(int((tmp_path / "example/hangs.pid").read_text()))


def test_a_second_call_goes_on_where_the_first_was_killed_unless_the_code_is_another(tmp_path):
    runs = tmp_path / "example/passes.count"
    run_example(tmp_path, quick=True)
    (tmp_path / RESULTS).write_bytes((tmp_path / RESULTS).read_bytes() + b'{"fault": "example", "tri')
    row, told = run_example(tmp_path)
    assert len(row.outcomes) == 6
    assert len(told) == 5  # without the one that was done
    assert runs.read_text() == "once\n" * 2  # it, and the other one that counts
    assert run_example(tmp_path)[1] == []
    assert len(run_example(tmp_path, quick=True, code="another")[1]) == 1
    assert runs.read_text() == "once\n" * 3


def test_the_code_of_a_result_is_that_of_the_package_of_the_helpers_and_of_the_fault_alone(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "tests/faults", tmp_path / "tests/faults")
    (tmp_path / "umd_eqx").mkdir()
    monkeypatch.setattr("faults.suite.sources.ROOT", tmp_path)
    monkeypatch.setattr("inspect.getfile", lambda f: str(tmp_path / "tests/faults/suite" / f"{f.__module__[13:]}.py"))
    one, other = FAULTS[:2]
    digests = [code_digest(one, FAULTS)]
    for change in ("umd_eqx/a.py", "tests/faults/tiny.py", "tests/faults/suite/base.py", one.trials.__module__):
        name = change if "/" in change else f"tests/{change.replace('.', '/')}.py"
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        digests.append(code_digest(one, FAULTS))
    assert len({*digests}) == 5
    with (tmp_path / f"tests/{other.trials.__module__.replace('.', '/')}.py").open("a") as file:
        file.write("# changed\n")
    assert code_digest(one, FAULTS) == digests[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "kil"), "error: --only: 'kil' is not a fault. Did you mean kill? The faults are "),
        (("--only", "kill", "8"), "error: --only: '8' is not a fault. The faults are "),
        (("--limit", "0"), "error: --limit: 0.0 is not positive. "),
        (("--json", "nowhere/rows.json"), "error: --json: there is no folder nowhere. "),
        (("--work", "/proc/faults"), "error: --work: /proc/faults cannot be written to "),
    ],
)
def test_bad_input_is_one_line(words, said, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert (out, len(error.splitlines())) == ("", 1)
    assert error.startswith(said)


def test_names_of_faults_and_trials_are_unique():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        for quick in (True, False):
            names = [trial.name for trial in fault.trials(quick)]
            assert len({*names}) == len(names) > 0
            assert not [name for name in names if "/" in name or name.split() != [name]]


def test_the_summary_counts_what_passed():
    for fault in FAULTS[:5]:
        passed = [Outcome(True, "", {"noticed": 1.0, "metrics": 0.0})] * 3
        failed = [Outcome(False)]
        assert "3/3" in fault.summary(passed)
        assert "3/4" in fault.summary([*passed, *failed])


COMMAND = """
import sys
import faults.__main__ as command
from faults.example_fault import FAULT
command.all_faults = lambda: [FAULT]
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_trial_that_is_under_way(tmp_path, number):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    words = [sys.executable, "-c", f"import signal\nsignal.signal(2, signal.default_int_handler){COMMAND}"]
    process = subprocess.Popen([*words, "--work", str(tmp_path)], env=environment, stdout=-1, stderr=-1, text=True)
    child = tmp_path / "example/hangs.pid"
    while not (child.exists() and child.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert is_gone(int(child.read_text()))
    assert (process.returncode, out) == (130, "")
    assert error.splitlines()[-1] == "interrupted: finished trials are kept. The same command goes on"
    assert len(Results(tmp_path / RESULTS).rows) == 3
