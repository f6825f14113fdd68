"""Runs within this process, and what they saved, restored and ended with."""

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import numpy as np
from faults.tiny import numbers
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.config import Config
from umd_eqx.runs import describing
from umd_eqx.runs import run as running
from umd_eqx.training import layout
from umd_eqx.training.checkpoint import Checkpoints

SMALLEST = 64
"""The size above which arrays are divided: that of the package would leave all of a tiny network whole."""


def digest(state: PyTree) -> str:
    """Returns the SHA-256 of all arrays of a state, with their names, types and shapes."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(state, eqx.is_array)):
        array = np.asarray(jax.device_get(leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def is_alike(state: PyTree) -> bool:
    """Whether devices that hold the same part of an array hold the same bytes."""
    parts: dict[tuple[int, str], bytes] = {}
    for number, leaf in enumerate(jax.tree.leaves(eqx.filter(state, eqx.is_array))):
        for shard in leaf.addressable_shards:
            held = np.asarray(shard.data).tobytes()
            if parts.setdefault((number, str(shard.index)), held) != held:
                return False
    return True


def observed_run(config: Config, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Calls `run`, and returns what was seen as plain data.

    **Returns:** `saved`, the digest of each state that was saved, by its step; `restored`, step and digest, or None;
    `last`, the digest of the last state, and `alike`, whether all devices have the same; `rows` of the metrics without
    throughput; `said`, what was printed; `error`, the field and the problem of a `BadInput`, or None.
    """
    seen: dict[str, Any] = {"saved": {}, "restored": None, "last": None, "alike": None, "error": None}
    save, restore, fit, said = Checkpoints.save, Checkpoints.restore, running.fit, io.StringIO()

    def saved(self: Checkpoints, step: int, state: Any) -> Any:
        seen["saved"][str(step)] = digest(state)
        return save(self, step, state)

    def restored(self: Checkpoints, *arguments: Any, **named: Any) -> Any:
        found = restore(self, *arguments, **named)
        if found is not None:
            seen["restored"] = [found[0], digest(found[1])]
        return found

    def fitted(*arguments: Any, **named: Any) -> Any:
        step, state = fit(*arguments, **named)
        seen["last"], seen["alike"] = digest(state), is_alike(state)
        return step, state

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Checkpoints, "save", saved))
        stack.enter_context(mock.patch.object(Checkpoints, "restore", restored))
        stack.enter_context(mock.patch.object(running, "fit", fitted))
        stack.enter_context(mock.patch.object(describing, "peak_flops", return_value=(1e12, "not measured")))
        stack.enter_context(mock.patch.object(layout, "SMALLEST", SMALLEST))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        try:
            running.run(config, run_dir=run_dir, **options)
        except BadInput as error:
            seen["error"] = [error.field, error.problem]
    return seen | {"rows": numbers(run_dir), "said": said.getvalue()}
