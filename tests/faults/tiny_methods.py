"""The four methods as runs of seconds."""

import functools
import hashlib
from pathlib import Path

import numpy as np
from faults.tiny import tiny

from umd_eqx.core.types import Batch
from umd_eqx.eval import Denoising, Reconstruction
from umd_eqx.recipes import pretrain
from umd_eqx.recipes.config import Config
from umd_eqx.training.step import TrainState

STEPS = 24


def tiny_method(name: str) -> Config:
    """A run of 24 steps of `umd`, `mae`, `dit` or `maskdit`, with an average of the weights and two evaluations."""
    evaluator = {
        "reconstruction": Reconstruction(every=12, images=8, pictures=2),
        "denoising": Denoising(every=12, images=8, pictures=2, levels=(0.5,), shown_levels=(0.5,), weights="ema"),
    }
    kind = "reconstruction" if name == "mae" else "denoising"
    recipe = {"umd": pretrain.umd, "mae": pretrain.mae, "dit": pretrain.dit, "maskdit": pretrain.maskdit}[name]
    return tiny(recipe, optim__steps=STEPS, checkpoint__every=3, eval={kind: evaluator[kind]})


METHODS = {f"tiny-{name}": functools.partial(tiny_method, name) for name in ("umd", "mae", "dit", "maskdit")}


def keep_batch(path: Path, state: TrainState, batch: Batch) -> None:
    """Appends a line to a file: the step that begins, and the SHA-256 of its batch."""
    content = b"".join(np.asarray(x).tobytes() for x in (batch.image, batch.label, batch.valid))
    with path.open("a") as file:
        file.write(f"{int(state.step)} {hashlib.sha256(content).hexdigest()}\n")
