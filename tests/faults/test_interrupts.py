"""Ctrl-C wherever it finds a program of `experiments/`: one line, exit code 130, no traceback and no crash."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from umd_eqx.training.signals import interruptible_imports

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PROGRAMS = sorted(path.name for path in EXPERIMENTS.glob("*.py"))

# Python imports a module of this name when it starts. The import of HOLD_IMPORT is then never over, and
# an interrupt of it an error of its own, as where an extension module is being initialised.
SITE = """
import importlib.abc, os, sys, time

class Hold(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == os.environ["HOLD_IMPORT"]:
            os.write(1, b"held\\n")
            try:
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt as error:
                raise ImportError("Encountered an error while initializing the extension.") from error

sys.meta_path.insert(0, Hold())
"""


# A shell that starts the tests in the background makes them ignore Ctrl-C, which a program would inherit. (In a process
# of its own, since a `preexec_fn` makes Python fork a process in which JAX may be running.)
HEED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def started(program: str, *words: str, folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    """A program of `experiments/` as a user starts it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "UMD_"))}
    path = os.pathsep.join([str(folder), str(EXPERIMENTS.parent)])
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}
    command = [sys.executable, "-c", HEED, str(EXPERIMENTS / program), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=folder, **pipes)


def read_until(process: subprocess.Popen[bytes], descriptor: int, mark: bytes) -> None:
    """Returns when a program has written something, from below the buffer that `communicate` reads."""
    said = b""
    while mark not in said:
        some = os.read(descriptor, 1)
        if not some:
            pytest.fail(f"it ended without {mark}: {said.decode()}{process.communicate()}")
        said += some


def interrupted(process: subprocess.Popen[bytes]) -> tuple[int, list[str]]:
    """Exit code and the lines on stderr, without those that JAX logs of its compiler."""
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=240)[1].decode()
    return process.returncode, [line for line in error.splitlines() if "jax._src" not in line]


@pytest.mark.parametrize(
    ("program", "held"), [*((program, "jax") for program in PROGRAMS), ("sample.py", "umd_eqx.commands.sampling")]
)
def test_while_libraries_are_imported(tmp_path, program, held):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    process = started(program, folder=tmp_path, HOLD_IMPORT=held)
    assert process.stdout is not None
    read_until(process, process.stdout.fileno(), b"held\n")
    assert interrupted(process) == (130, ["interrupted: nothing was started"])


def test_while_xla_compiles(tmp_path):
    process = started("sample.py", "--num", "4", "--batch-size", "4", folder=tmp_path, JAX_LOG_COMPILES="1")
    assert process.stderr is not None
    read_until(process, process.stderr.fileno(), b"conversion jit(sample_batch)")
    with pytest.raises(subprocess.TimeoutExpired):  # it is now with the compiler, which takes several seconds
        process.wait(0.3)
    code, said = interrupted(process)
    assert (code, said[-1]) == (130, "interrupted: the last checkpoint, if any, is unchanged")
    assert "Traceback" not in "".join(said)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_ignored_signal_stays_ignored_while_libraries_are_imported():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible_imports():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
