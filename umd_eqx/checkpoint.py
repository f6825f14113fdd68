"""Checkpoints: the training state, saved while training goes on, restored bit for bit."""

import contextlib
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from umd_eqx.errors import BadInput
from umd_eqx.train import TrainState

SEAL = "crc32.json"
"""The checksums of a checkpoint's files, beside them."""


class Checkpoints:
    """The checkpoints of one run directory. A save that was cut short leaves nothing that could be mistaken for one.

    **Arguments:**

    - `directory`: where they lie, one folder a step.
    - `keep`: how many of the newest are kept.
    """

    def __init__(self, directory: epath.Path, *, keep: int):
        # orbax tells its whole life at INFO and warns about its own defaults; its errors reach us as exceptions.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.directory = directory
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(directory, options=options, item_names=("state",))

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState) -> None:
        """Begins to save; returns once the state is copied. A failure of an earlier save is raised here."""
        if step in self.manager.all_steps():
            return
        arrays = _as_dict(eqx.filter(state, eqx.is_array))
        if jax.default_backend() == "cpu":
            # There orbax would write from the very buffers that the next step is given to overwrite.
            arrays = jax.tree.map(jnp.copy, arrays)
        with _disk_errors(self.directory):
            self.manager.wait_until_finished()
            self._seal()
            self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays)))

    def restore(
        self, like: TrainState, sharding: jax.sharding.Sharding, say: Callable[[str], None]
    ) -> tuple[int, TrainState] | None:
        """The newest state that can be read, with its step; None if there is none at all.

        `like` gives the structure (shapes will do), `sharding` where its arrays go. `say` is told of a checkpoint that
        is damaged; it is set aside as `<step>.corrupt`, and the one before it is tried. Raises `BadInput` if none can
        be read.
        """
        arrays, static = eqx.partition(like, lambda leaf: hasattr(leaf, "dtype"))
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for name, leaf in _as_dict(arrays).items()
        }
        found = self.steps()
        for step in reversed(found):
            try:
                _check_seal(self.directory / str(step))
                args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                restored = self.manager.restore(step, args=args)["state"]
            except Exception as error:  # whatever a damaged file makes of orbax, zarr or tensorstore
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
                say(f"checkpoint {step} is corrupt ({reason}); set aside as {step}.corrupt, trying the one before it")
                self._set_aside(step)
                continue
            leaves = [restored[name] for name in abstract]
            return step, eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), leaves), static)
        if found or any(entry.name.endswith(".corrupt") for entry in self.directory.iterdir()):
            # Also the second time: to begin again would wipe the numbers of the run.
            raise BadInput(
                "--run-dir",
                f"none of the checkpoints in {self.directory} can be read",
                "Choose another directory to start afresh, or delete this one",
            )
        return None

    def wait(self) -> None:
        """Returns when everything that was begun is on the disk."""
        with _disk_errors(self.directory):
            self.manager.wait_until_finished()
            self._seal()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self.wait()
        self.manager.close()

    def _seal(self) -> None:
        # A save completes in the background, so that its files are summed up when we come by the next time.
        for step in self.steps():
            seal = self.directory / str(step) / SEAL
            if not seal.exists():
                # In one piece: half a seal would make a sound checkpoint look damaged.
                unfinished = seal.with_name(f"{SEAL}.tmp")
                unfinished.write_text(json.dumps(_digests(seal.parent)))
                unfinished.replace(seal)

    def _set_aside(self, step: int) -> None:
        target = self.directory / f"{step}.corrupt"
        if target.exists():
            target.rmtree()
        (self.directory / str(step)).rename(target)
        self.manager.reload()


def _digests(folder: epath.Path) -> dict[str, int]:
    digests = {}
    for entry in sorted(folder.iterdir()):  # epath has no recursive glob, which would be dear on a bucket
        if entry.is_dir():
            digests |= {f"{entry.name}/{name}": digest for name, digest in _digests(entry).items()}
        elif entry.name not in (SEAL, f"{SEAL}.tmp"):
            digests[entry.name] = zlib.crc32(entry.read_bytes())
    return digests


def _check_seal(folder: epath.Path) -> None:
    # orbax does not notice a flipped bit, and a damaged file makes its threads print tracebacks at exit. A checkpoint
    # whose process was killed before it could be summed up is left to orbax.
    if not (folder / SEAL).exists():
        return
    expected, found = json.loads((folder / SEAL).read_text()), _digests(folder)
    for name in expected | found:
        if expected.get(name) != found.get(name):
            raise OSError(f"the file {name} is {'missing' if name not in found else 'damaged'}")


def require_space(directory: epath.Path, state: PyTree, keep: int) -> None:
    """Raises `BadInput` if the disk cannot take `keep` + 1 checkpoints of `state` (arrays or shapes)."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if hasattr(leaf, "dtype"))
    needed = (keep + 1) * size
    try:
        free = shutil.disk_usage(directory).free
    except OSError:  # a bucket
        return
    if free < needed:
        raise BadInput(
            "--run-dir",
            f"{directory} has {free / 1e9:.2f} GB free, and {keep + 1} checkpoints need {needed / 1e9:.2f} GB",
            "Free some space, choose another disk, or keep fewer with --checkpoint.keep",
        )


def _as_dict(arrays: PyTree) -> dict[str, Any]:
    # By name, so that a checkpoint does not depend on the order of fields, and so that its files can be looked at.
    leaves, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _disk_errors(directory: epath.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if "No space left" not in str(error) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        way_out = "Free some space and run the same command again: it goes on from the last checkpoint that was saved"
        raise BadInput("--run-dir", f"the disk of {directory} is full", way_out) from error
