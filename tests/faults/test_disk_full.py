"""A disk that fills up while a run writes to it: one line, exit code 2, and nothing lost."""

import errno
import io
import os
import re
import shutil
from pathlib import Path

import pytest
from faults.tiny import (
    arrays,
    assert_equal_bit_for_bit,
    numbers,
    on_one_device,
    tiny,
)
from faults.tiny import (
    compilation_cache as compilation_cache,
)
from faults.tiny import (
    one_device as one_device,
)

from umd_eqx.commands.cli import main
from umd_eqx.core.errors import BadInput, disk_errors
from umd_eqx.report import MetricsFile, read_metrics
from umd_eqx.runs.run import run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = tiny()
OTHER = [errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, and beside it the same with a third: what comes of it if no disk is full."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(CONFIG, run_dir=folder / "run", preset="tiny", limit_steps=2)
        shutil.copytree(folder / "run", folder / "whole")
        run(CONFIG, run_dir=folder / "whole", preset="tiny", limit_steps=3)
    return folder


def fill_up(patch: pytest.MonkeyPatch, pattern: str, number: int = errno.ENOSPC) -> None:
    """Lets the disk be full for the files with such a name. As with the real thing, the error names none."""
    sync = os.fsync

    def fsync(file: int) -> None:
        if re.fullmatch(pattern, Path(os.readlink(f"/proc/self/fd/{file}")).name):
            raise OSError(number, os.strerror(number))
        sync(file)

    patch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("pattern", "saved"),
    [
        (r"metrics\.jsonl", "whole"),  # a row, after its step is saved and evaluated
        (r"metrics\.jsonl\..*", "run"),  # the rows that are kept, at the start
        (r"config\.json\..*", "run"),
        (r"environment\.json\..*", "run"),
        (r"00000003\.png\..*", "whole"),
        (r"report\.html\..*", "whole"),
        (r"results\.json\..*", "whole"),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_its_last_checkpoint(
    begun, pattern, saved, tmp_path, monkeypatch, capsys
):
    run_dir = tmp_path / "run"
    shutil.copytree(begun / "run", run_dir)
    with monkeypatch.context() as patch:
        fill_up(patch, pattern)
        with pytest.raises(SystemExit) as end:
            main({"tiny": tiny}, ["tiny", "--run-dir", str(run_dir), "--limit-steps", "3"])
    assert end.value.code == 2
    out, error = capsys.readouterr()
    assert error == (
        f"error: --run-dir: the disk of {run_dir} is full. Free some space and run the same command again: "
        "it resumes from the last saved checkpoint\n"
    )
    assert "Traceback" not in out
    assert_equal_bit_for_bit(arrays(run_dir, CONFIG), arrays(begun / saved, CONFIG))
    run(CONFIG, run_dir=run_dir, preset="tiny", limit_steps=3)
    assert numbers(run_dir) == numbers(begun / "whole")
    assert_equal_bit_for_bit(arrays(run_dir, CONFIG), arrays(begun / "whole", CONFIG))


def test_in_python_it_is_the_error_of_the_system(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_up(patch, r"metrics\.jsonl")
        with pytest.raises(OSError, match="No space left") as error:
            run(CONFIG, run_dir=tmp_path / "run", limit_steps=1)
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "full"), "runs/here"),
        (OSError(errno.EDQUOT, "quota", "/tmp/there"), "/tmp/there"),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']"), "runs/here"),
    ],
)
def test_a_full_disk_is_known_by_its_number_and_by_its_words(error, named):
    with pytest.raises(BadInput, match=f"the disk of {named} is full"), disk_errors("runs/here"):
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        *(
            (OSError(number, os.strerror(number)), f"runs/here cannot be used ({os.strerror(number)})")
            for number in OTHER
        ),
        (OSError(errno.EROFS, "read-only", "/tmp/there"), f"/tmp/there cannot be used ({os.strerror(errno.EROFS)})"),
        (ValueError("PERMISSION_DENIED: no [os_error_code='13']"), "runs/here cannot be used (Permission denied)"),
        (ValueError("UNKNOWN: Error [os_error_code='5']"), "runs/here cannot be used (Input/output error)"),
    ],
    ids=repr,
)
def test_other_errors_of_a_disk_are_told_too(error, said):
    with pytest.raises(BadInput, match=re.escape(said)) as raised, disk_errors("runs/here"):
        raise error
    assert "Resolve this and run the same command again: it resumes" in raised.value.hint


@pytest.mark.parametrize("number", OTHER)
def test_a_disk_in_trouble_is_one_line(begun, tmp_path, monkeypatch, capsys, number):
    run_dir = tmp_path / "run"
    shutil.copytree(begun / "run", run_dir)
    with monkeypatch.context() as patch:
        fill_up(patch, r"metrics\.jsonl", number)
        with pytest.raises(SystemExit) as end:
            main({"tiny": lambda: CONFIG}, ["tiny", "--run-dir", str(run_dir), "--limit-steps", "3"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --run-dir: ")
    assert os.strerror(number) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBADF, "Bad file descriptor"),
        ValueError("RESOURCE_EXHAUSTED: Too many open files [os_error_code='24']"),
        BadInput("run_dir", "runs/x cannot be written to (No space left on device)", "Choose another"),
    ],
)
def test_no_other_error_is_taken_for_one(error):
    with pytest.raises(type(error)) as raised, disk_errors("runs/here"):
        raise error
    assert raised.value is error


class Reluctant(io.FileIO):
    """As write(2) at a disk that is filling up: it says how much it took, and "no space" only when asked again."""

    def write(self, data) -> int:
        return super().write(data[:5])


def test_a_row_of_which_the_disk_took_a_part_is_written_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(Reluctant(path, "wb"), []) as metrics:
        metrics.append(1, {"train/loss": 0.5})
        metrics.append(2, {"train/loss": 0.25})
    assert read_metrics(path) == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25}]
