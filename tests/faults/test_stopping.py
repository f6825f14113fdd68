"""SIGTERM wherever it finds a run: exit code 75 at once where nothing is unsaved, and nothing lost when it goes on."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults.test_interrupts import SITE, read_until, started
from faults.tiny import (
    arrays,
    assert_equal_bit_for_bit,
    ended,
    let_go,
    numbers,
    start,
    tiny,
    wait_until_held,
)
from faults.tiny import (
    compilation_cache as compilation_cache,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes of the run if nobody stops it."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert ended(start(directory))[0] == 0
    return directory


def same_as(run_dir: Path, whole: Path) -> None:
    assert numbers(run_dir) == numbers(whole)
    assert_equal_bit_for_bit(arrays(run_dir, tiny()), arrays(whole, tiny()))
    assert not (run_dir / "pending.json").exists()


def stopped_at(process: subprocess.Popen[str], run_dir: Path, step: int, number: int = signal.SIGTERM) -> None:
    """Sends a signal, by which the process ends although what it is in is never over."""
    began = time.monotonic()
    process.send_signal(number)
    code, out, error = ended(process, timeout=60)
    assert (code, error) == (75, "")
    name = signal.Signals(number).name
    assert out.endswith(f"stopped by {name} at step {step} of 12, saved. The same command resumes it\n"), out
    assert time.monotonic() - began < 60
    assert (run_dir / ".lock").read_bytes() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [4, 12])
def test_in_an_evaluation_it_leaves_at_once_and_evaluates_when_it_goes_on(tmp_path, whole, step, number):
    run_dir = tmp_path / "run"
    process = start(run_dir, hold_evaluation=step)
    wait_until_held(process, run_dir)
    stopped_at(process, run_dir, step, number)
    assert [row["step"] for row in numbers(run_dir)] == list(range(1, step))
    code, out, error = ended(start(run_dir))
    assert (code, error) == (0, "")
    assert f"at step {step} of 12" in out
    same_as(run_dir, whole)


def test_killed_in_an_evaluation_it_goes_on_with_it(tmp_path, whole):
    run_dir = tmp_path / "run"
    process = start(run_dir, hold_evaluation=8)
    wait_until_held(process, run_dir)
    while not (run_dir / "checkpoints/8/crc32.json").exists():
        time.sleep(0.02)
    process.kill()
    ended(process)
    code, out, _ = ended(start(run_dir))
    assert code == 0
    assert f"resuming {run_dir} at step 8 of 12" in out
    same_as(run_dir, whole)


def test_in_the_first_step_which_is_being_compiled_it_leaves_at_once(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, hold_after=0)
    wait_until_held(process, run_dir)
    stopped_at(process, run_dir, 0)
    assert not (run_dir / "checkpoints").exists() or not [*(run_dir / "checkpoints").iterdir()]


def test_a_second_one_in_a_step_changes_nothing_and_the_step_is_saved(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, hold_after=2)
    wait_until_held(process, run_dir)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    let_go(run_dir)
    code, out, error = ended(process)
    assert (code, error) == (75, "")
    assert out.count("SIGTERM: saving") == 1
    assert (run_dir / "checkpoints/3").is_dir()


def test_while_libraries_are_imported(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    process = started("pretrain.py", folder=tmp_path, HOLD_IMPORT="jax")
    assert process.stdout is not None
    read_until(process, process.stdout.fileno(), b"held\n")
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (75, b"stopped by SIGTERM: nothing was started\n", b"")


def test_while_xla_compiles_for_samples(tmp_path):
    process = started("sample.py", "--num", "4", "--batch-size", "4", folder=tmp_path, JAX_LOG_COMPILES="1")
    assert process.stderr is not None
    read_until(process, process.stderr.fileno(), b"conversion jit(sample_batch)")
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 75
    assert out.endswith("stopped by SIGTERM: what was saved is unchanged. The same command starts it again\n")
    assert [path.name for path in tmp_path.iterdir()] == []
