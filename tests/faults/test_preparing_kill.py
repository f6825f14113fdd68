"""Preparation in processes of their own that are killed: at the end, all is as no accident would have left it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.tiny import ended
from imagenet_trees import write_archives

from umd_eqx.commands.prepare import prepare_data

COMMAND = Path(__file__).parent / "slow_prepare.py"
FILES = 9


def words(out: str, workers: int) -> list[str]:
    flags = ("--src", "in", "--out", out, "--name", "imagenet2012", "--per-shard", "3", "--workers", str(workers))
    return list(flags)


def start(root: Path, out: str, workers: int, seconds_an_image: float = 0.0) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "UMD_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "SECONDS_AN_IMAGE": str(seconds_an_image)}
    command = [sys.executable, str(COMMAND), *words(out, workers)]
    return subprocess.Popen(command, env=environment, cwd=root, stdout=-1, stderr=-1, text=True)


def whole(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def wait_for_files(out: Path, count: int) -> dict[Path, int]:
    """Waits until some files are complete, and returns when each was written."""
    for _ in range(6000):
        facts = [*out.glob("imagenet2012/5.1.0/.progress/*.array_record-*.json")]
        if len(facts) >= count:
            paths = [path.parents[1] / path.stem for path in facts]
            return {path: path.stat().st_mtime_ns for path in paths}
        time.sleep(0.02)
    raise AssertionError("no file was written in two minutes")


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_half_way_and_begun_again_it_leaves_the_same_bytes(tmp_path, workers, monkeypatch):
    write_archives(tmp_path / "in")
    process = start(tmp_path, "out", workers, seconds_an_image=0.3)
    there = wait_for_files(tmp_path / "out", 2)
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process)[0] == -signal.SIGKILL
    folder = tmp_path / "out" / "imagenet2012" / "5.1.0"
    assert not (folder / "dataset_info.json").exists()
    assert 2 <= len(there) < FILES

    monkeypatch.chdir(tmp_path)
    assert prepare_data(words("out", 1)) == 0
    assert {path: path.stat().st_mtime_ns for path in there} == there  # left as they were
    assert prepare_data(words("whole", 1)) == 0
    assert len(whole(tmp_path / "whole")) == FILES + 5  # lock, manifest and three files of metadata
    assert whole(tmp_path / "out") == whole(tmp_path / "whole")


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them_and_on_ctrl_c(tmp_path):
    write_archives(tmp_path / "in")
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 75)):
        process = start(tmp_path, f"out{number}", 2, seconds_an_image=0.5)
        wait_for_files(tmp_path / f"out{number}", 1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
        process.send_signal(number)
        assert ended(process)[0] == code
        for _ in range(1000):
            left = [child for child in children if Path(f"/proc/{child}").exists()]
            if not left:
                break
            time.sleep(0.02)
        assert left == []
