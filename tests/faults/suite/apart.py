"""Functions of the suite in processes of their own: with other devices, another environment, and a bound on memory.

`python -m faults.suite.apart MODULE FUNCTION FILE` is what such a process runs: FILE holds the arguments, and then what
the function returned.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from faults.suite.sources import ROOT


class Ended(NamedTuple):
    """How a process ended.

    - `code`: its exit code; negative for a signal, None if its time was over and it was killed.
    - `value`: what the function returned; None if it did not return.
    - `said`: what it printed, to both streams.
    - `seconds`, `peak_mb`: its duration, and its largest resident memory in MB.
    """

    code: int | None
    value: Any
    said: str
    seconds: float
    peak_mb: float

    def result(self) -> Any:
        """Returns the value; raises `RuntimeError` with the end of what was printed if there is none."""
        if self.code != 0:
            raise RuntimeError(f"exit code {self.code} after {self.seconds:.0f} s: {self.said[-1500:]}")
        return self.value


def apart(
    function: Callable[..., Any],
    folder: Path,
    *arguments: Any,
    devices: int = 1,
    seconds: float = 800.0,
    memory_gb: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Calls a function of a module of the suite in a new process, whose working directory is `folder`.

    **Arguments:**

    - `function`: a function at the top of its module.
    - `arguments`: plain data, as the value that it returns.
    - `devices`: the number of CPU devices that JAX has there.
    - `seconds`: the time after which the process is killed.
    - `memory_gb`: the bound on its address space, in GB.
    - `environment`: variables in addition to a few of this process.
    """
    from faults.tiny import cache_dir

    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f".{function.__name__}-{time.monotonic_ns()}.json"
    place.write_text(json.dumps(arguments))
    kept = {name: x for name, x in os.environ.items() if not name.startswith(("XLA_", "JAX_", "UMD_", "WANDB_"))}
    given = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": cache_dir(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    words = [sys.executable, "-m", "faults.suite.apart", function.__module__, function.__name__, str(place)]
    bound = None if memory_gb is None else int(memory_gb * 2**30)
    began, said = time.monotonic(), place.with_suffix(".txt")
    with said.open("wb") as file:
        process = subprocess.Popen(
            words,
            env=kept | given | dict(environment or {}),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=None if bound is None else lambda: resource.setrlimit(resource.RLIMIT_AS, (bound, bound)),
        )
        code, peak = _wait(process, began + seconds)
    value = json.loads(place.read_text()) if code == 0 else None
    text = said.read_text(errors="replace")
    for path in (place, said):
        path.unlink()
    return Ended(code, value, text, time.monotonic() - began, peak / 1024)


def _wait(process: subprocess.Popen[bytes], end: float) -> tuple[int | None, int]:
    """Waits for a process until `end`, then kills it; returns its exit code and peak in KiB."""
    while True:
        number, status, usage = os.wait4(process.pid, os.WNOHANG)
        if number:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_maxrss
        if time.monotonic() > end:
            process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            return None, usage.ru_maxrss
        time.sleep(0.02)


if __name__ == "__main__":
    module, name, file = sys.argv[1:]
    arguments = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))
