"""The command on a tiny run in this process, which takes seconds less than one of its own."""

import contextlib
import gc
import io
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import pytest
from faults.tiny import cache_dir, on_one_device
from faults.tiny_methods import METHODS, keep_batch
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from umd_eqx.commands.cli import main
from umd_eqx.training import loop


@contextlib.contextmanager
def on_one_cached_device() -> Iterator[pytest.MonkeyPatch]:
    """A context in which runs take one device, and share what the compiler made with those in other processes."""
    for name, value in {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": cache_dir(),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)
    reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        patch.setattr("umd_eqx.runs.lock.WATCH_SECONDS", 0.5)  # where the record of a lock was damaged
        yield patch


def command(run_dir: Path, method: str) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of the command on a tiny run, as `faults.suite.runs.begin` starts it."""
    out, error, code = io.StringIO(), io.StringIO(), 0
    with on_one_cached_device() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        step = loop.train_step

        def kept_step(parts, state, batch):
            keep_batch(Path(f"{run_dir}.batches"), state, batch)
            return step(parts, state, batch)

        patch.setattr(loop, "train_step", kept_step)
        patch.setattr(loop, "write_webpage", lambda run: run.path / "report.html")
        try:
            main(METHODS, [f"tiny-{method}", "--run-dir", str(run_dir)])
        except SystemExit as end:
            code = end.code
    free_memory_maps()
    assert isinstance(code, int)
    return code, out.getvalue(), error.getvalue()


def free_memory_maps() -> None:
    """Lets go of compiled programs before there are more memory maps than Linux gives a process."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()
