"""The space that the checkpoints of a run need, before its first step."""

import shutil

import jax
from etils import epath
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput
from umd_eqx.training.checkpoint import FOLDER


def require_space(run_dir: epath.Path, state: PyTree, keep: int) -> None:
    """Raises `BadInput` if the disk has no space for the remaining checkpoints of `state` (arrays or shapes).

    There are at most `keep` checkpoints and the one being written; those already in `run_dir` are subtracted.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if hasattr(leaf, "dtype"))
    try:
        free = shutil.disk_usage(run_dir).free
    except OSError:  # a bucket
        return
    folder = run_dir / FOLDER
    # Only complete checkpoints have a number as their name.
    there = sum(entry.name.isdecimal() for entry in folder.iterdir()) if folder.exists() else 0
    missing = keep + 1 - min(keep, there)
    if free < missing * size:
        fewer = ", or keep fewer with `checkpoint.keep`" if missing > 1 else ""
        raise BadInput(
            "run_dir",
            f"{run_dir} has {free / 1e9:.2f} GB free, and checkpoints need {missing * size / 1e9:.2f} GB more "
            f"({missing} of {size / 1e9:.2f} GB)",
            f"Free some space or choose another disk{fewer}",
        )
