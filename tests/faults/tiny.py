"""A recipe that takes seconds, runs of it in this process and in one of its own, and what they leave behind."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from umd_eqx.core.sharding import make_mesh
from umd_eqx.eval import Denoising
from umd_eqx.recipes.build import build
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.pretrain import Preset, umd
from umd_eqx.training.checkpoint import Checkpoints

COMMAND = Path(__file__).parent / "tiny_pretrain.py"
STEPS = 12
PATIENCE = float(os.environ.get("UMD_EQX_TEST_SECONDS", "240"))
"""Seconds after which a process is taken to hang."""


def tiny(recipe: Preset = umd, **fields: Any) -> Config:
    """A UMD run of 12 small steps with every row written, a checkpoint every second step and an evaluation at 4, 8, 12.

    `recipe` is that of another method. `fields` by their dotted names with `__` for the dot: `tiny(optim__lr=1e-2)`.
    """
    config = recipe()
    shown = Denoising(every=4, images=8, pictures=2, levels=(0.5,), shown_levels=(0.5,))
    config = dataclasses.replace(config, eval={"denoising": shown})
    usual = {
        "model__variant": "mu/7",
        "data__batch_size": 8,
        "data__eval_batch_size": 8,
        "optim__steps": STEPS,
        "log__every": 1,
        "checkpoint__every": 2,
    }
    for name, value in (usual | fields).items():
        *room, field = name.split("__")
        inner = {field: value}
        if room:
            inner = {room[0]: dataclasses.replace(getattr(config, room[0]), **inner)}
        config = dataclasses.replace(config, **inner)
    return config


def cache_dir() -> str:
    """Where the runs of a session, in this process and in others, keep what the compiler made."""
    # One for the whole session.
    return os.environ.setdefault("UMD_EQX_TEST_CACHE", tempfile.mkdtemp(prefix="umd_eqx_compiled_"))


@pytest.fixture(autouse=True, scope="module")
def compilation_cache() -> Iterator[None]:
    """Lets the runs of a session share what the compiler made (each run has a step function of its own), in a hurry."""
    settings = {
        "jax_disable_most_optimizations": True,  # halves the time to compile; a step here takes milliseconds anyway
        "jax_compilation_cache_dir": cache_dir(),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        # JAX looks at these once; other modules compile for eight devices, which it cannot always write down.
        reset_cache()
        if values is settings:
            yield


def on_one_device(patch: pytest.MonkeyPatch) -> None:
    """Lets runs take one of the eight devices, which two cores compile and step several times as fast."""
    patch.setattr("umd_eqx.recipes.build.make_mesh", lambda **_: make_mesh(jax.devices()[:1]))
    patch.setattr("umd_eqx.runs.describing.peak_flops", lambda: (1e12, "not measured"))


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`on_one_device`, for a test."""
    on_one_device(monkeypatch)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """The rows without what a clock says."""
    return [{name: x for name, x in row.items() if not name.startswith("throughput/")} for row in rows(run_dir)]


def arrays(run_dir: Path, config: Config) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    built = build(config, config.data.describe(), make_mesh(jax.devices()[:1]))
    checkpoints = Checkpoints(epath.Path(run_dir / "checkpoints"), keep=config.checkpoint.keep)
    found = checkpoints.restore(built.abstract_state(), device, pytest.fail)
    checkpoints.close()
    assert found is not None
    leaves, _ = jax.tree_util.tree_flatten_with_path(found[1])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal_bit_for_bit(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].tobytes() == right[name].tobytes(), name


def start(
    run_dir: Path,
    *flags: str,
    seconds_a_step: float = 0.0,
    hold_after: int | None = None,
    hold_evaluation: int | None = None,
    optimise: bool = False,
    preset: str = "tiny",
    **variables: str,
) -> subprocess.Popen[str]:
    """The command on a tiny recipe in a process of its own, with one device; `optimise` as a user's run is.

    After `hold_after` steps it stays within the next one until `let_go`, or in the evaluation of step
    `hold_evaluation`, so that what a test does to it comes neither too early nor too late, however busy the machine is:
    see `wait_until_held`. `variables` are set in its environment: see `tiny_pretrain.py`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "UMD_"))}
    paths = [str(COMMAND.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache_dir(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if optimise else "1",
        "SECONDS_A_STEP": str(seconds_a_step),
        "HOLD_AFTER": "" if hold_after is None else str(hold_after),
        "HOLD_EVALUATION": "" if hold_evaluation is None else str(hold_evaluation),
        "HOLD": str(run_dir),
        **variables,
    }
    for mark in (".held", ".go"):
        Path(f"{run_dir}{mark}").unlink(missing_ok=True)
    words = [sys.executable, str(COMMAND), preset, "--run-dir", str(run_dir), *flags]
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run_dir.parent
    )


def ended(process: subprocess.Popen[str], timeout: float = PATIENCE) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, error = process.communicate(timeout=timeout)
    return process.returncode, out, error


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process says up to the line with this text, in which it is. `ended` gives only what comes later."""
    assert process.stdout is not None
    said = b""
    while text.encode() not in said or not said.endswith(b"\n"):
        # Byte by byte from below the buffer, which would keep what `ended` is to read.
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            pytest.fail(f"the run ended without {text!r}: {said.decode()}{ended(process)}")
        said += byte
    return said.decode()


def wait_until_held(process: subprocess.Popen[str], run_dir: Path, timeout: float = PATIENCE) -> None:
    """Returns when a run with `hold_after` is within that step, every row before it written."""
    end = time.monotonic() + timeout
    while not Path(f"{run_dir}.held").exists():
        if process.poll() is not None:
            pytest.fail(f"the run ended before it was held: {ended(process)}")
        if time.monotonic() > end:
            process.kill()
            pytest.fail(f"the run was never held: {ended(process)}")
        time.sleep(0.02)


def let_go(run_dir: Path) -> None:
    """Lets the step of `hold_after` come to its end."""
    Path(f"{run_dir}.go").touch()
