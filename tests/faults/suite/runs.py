"""Undisturbed runs to compare with, and what makes two runs the same."""

import functools
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from faults.suite.sources import reference_folder
from faults.tiny import ended, numbers, start
from faults.tiny_methods import METHODS, STEPS

from umd_eqx.core.sharding import make_mesh
from umd_eqx.recipes.build import Built, build
from umd_eqx.training.checkpoint import Checkpoints
from umd_eqx.training.step import TrainState

Digests = Mapping[str, str]
"""SHA-256 by `parameters`, `ema`, `optimiser` and `position` (the steps done and skipped, which select the data)."""

PARTS = {"model": "parameters", "ema": "ema", "opt_state": "optimiser", "step": "position", "skipped": "position"}


class Restored(NamedTuple):
    """What the newest readable checkpoint of a run holds, and what was said when it was restored."""

    step: int
    digests: Digests
    said: list[str]


def begin(run_dir: Path, method: str, *flags: str, **options: Any) -> subprocess.Popen[str]:
    """The command on a tiny run of a method, in a process of its own; see `faults.tiny.start`.

    The web page is written at the end alone, which takes half of the time off.
    """
    return start(run_dir, *flags, preset=f"tiny-{method}", KEEP_BATCHES="1", ONE_PAGE="1", **options)


@functools.cache
def built(method: str) -> Built:
    config = METHODS[f"tiny-{method}"]()
    return build(config, config.data.describe(), make_mesh(jax.devices()[:1]))


def digests(state: TrainState) -> Digests:
    """Returns the SHA-256 of the parts of a state: names, types, shapes and bytes of all its arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    hashes = {part: hashlib.sha256() for part in PARTS.values()}
    for path, leaf in leaves:
        name, array = jax.tree_util.keystr(path), np.asarray(leaf)
        part = hashes[PARTS[name.removeprefix(".").partition(".")[0].partition("[")[0]]]
        part.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return {part: found.hexdigest() for part, found in hashes.items()}


def restore(run_dir: Path, method: str, step: int | None = None) -> Restored:
    """Restores the newest checkpoint as a run does, or that of a step.

    Raises as `Checkpoints.restore`, and `ValueError` if there is none.
    """
    checkpoints, said = Checkpoints(epath.Path(run_dir / "checkpoints"), keep=100), []
    if step is not None:
        checkpoints.steps = lambda: [step]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        found = checkpoints.restore(built(method).abstract_state(), device, said.append)
    finally:
        checkpoints.close()
    if found is None:
        raise ValueError("no checkpoint")
    return Restored(found[0], digests(found[1]), said)


def batches(run_dir: Path) -> dict[int, set[str]]:
    """Returns the digests of the batches that each step was begun with, however often it was."""
    found: dict[int, set[str]] = {}
    path = Path(f"{run_dir}.batches")
    for line in path.read_bytes().splitlines() if path.exists() else ():
        step, digest = line.decode().split()
        found.setdefault(int(step), set()).add(digest)
    return found


def made_once(work: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Returns a folder that trials of several faults share, in a work folder; `make` fills it, once for this code."""
    path = reference_folder(work) / name
    if not Path(f"{path}.made").exists():
        shutil.rmtree(path, ignore_errors=True)
        Path(f"{path}.batches").unlink(missing_ok=True)
        make(path)
        Path(f"{path}.made").touch()
    return path


class Reference(NamedTuple):
    """A run that nothing disturbed."""

    run_dir: Path
    digests: Mapping[int, Digests]
    """Those of its state at every step."""


@functools.cache
def reference(work: Path, method: str) -> Reference:
    """Returns the undisturbed run of a method, which trials share, with the digests of all its checkpoints."""

    def make(run_dir: Path) -> None:
        code, _, error = ended(begin(run_dir, method, "--checkpoint.every", "1", "--checkpoint.keep", "100"))
        assert (code, error) == (0, ""), error
        found = {step: restore(run_dir, method, step).digests for step in range(1, STEPS + 1)}
        Path(f"{run_dir}.json").write_text(json.dumps(found))

    run_dir = made_once(work, method, make)
    return Reference(run_dir, {int(step): x for step, x in json.loads(Path(f"{run_dir}.json").read_text()).items()})


def differences(run_dir: Path, method: str, whole: Reference, *, drawn: bool = True) -> str:
    """Returns what of a finished run is not as in the undisturbed one; empty if they are the same.

    Compared are the state (`Digests`), every number of every row, and if `drawn` the batch of each step, also of those
    that were repeated.
    """
    found, expected = restore(run_dir, method), whole.digests[STEPS]
    wrong = [f"step {found.step}"] if found.step != STEPS else []
    wrong += [part for part in expected if found.digests[part] != expected[part]]
    if numbers(run_dir) != numbers(whole.run_dir):
        wrong.append("losses")
    if drawn and batches(run_dir) != batches(whole.run_dir):
        wrong.append("batches")
    if (run_dir / "pending.json").exists():
        wrong.append("pending.json is left")
    return ", ".join([*wrong, *found.said])
