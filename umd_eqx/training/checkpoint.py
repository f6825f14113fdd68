"""Checkpoints of the training state, saved asynchronously during training and restored bit for bit."""

import json
import os
import re
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput, disk_errors
from umd_eqx.core.files import write_atomically
from umd_eqx.core.processes import from_first, is_first
from umd_eqx.training.orbax_noise import silence_orbax
from umd_eqx.training.step import TrainState

FOLDER = "checkpoints"
"""The folder of checkpoints in a run directory."""

SEAL = "crc32.json"
"""The file with the step of a checkpoint and the checksums of its files, in the same folder."""

DAMAGE_CODES = ("DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
"""Status codes of tensorstore for damaged or missing files. UNKNOWN, PERMISSION_DENIED, ... are system errors."""


class Checkpoints:
    """The checkpoints of one run directory. A save that is interrupted leaves no checkpoint.

    With several processes, all call each method, and each writes and reads its own shards in the shared directory. The
    first one checks and writes checksums, and removes old checkpoints.

    **Arguments:**

    - `directory`: the folder of the checkpoints, with one folder for each step.
    - `keep`: number of most recent checkpoints to keep.
    - `writing`: False to only read the checkpoints, without changing anything in the directory.

    `on_sealed` is called with the step of each save once it is complete and sealed, in a thread.
    """

    def __init__(self, directory: epath.Path, *, keep: int, writing: bool = True):
        silence_orbax()
        self.directory, self.writing = directory, writing
        self.on_sealed: Callable[[int], None] = lambda step: None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, read_only=not writing, create=writing
        )
        self.manager = ocp.CheckpointManager(directory, options=options, item_names=("state",))
        self._background = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealed: Future[bool] | None = None

    def steps(self) -> list[int]:
        """Returns the steps with a complete checkpoint, oldest first."""
        return from_first(lambda: sorted(self.manager.all_steps()))

    def save(self, step: int, state: TrainState) -> None:
        """Starts an asynchronous save; returns once the state is copied. Raises the error of a failed previous save.

        In the background, the checkpoint is completed and its checksums are written, which makes them available for the
        newest checkpoint even if the run is killed later.
        """
        if step in self.manager.all_steps():
            return
        arrays = _as_dict(eqx.filter(state, eqx.is_array))
        if jax.default_backend() == "cpu":
            # On CPU, orbax would write from the same buffers that the next step overwrites by donation.
            arrays = jax.tree.map(jnp.copy, arrays)
        with disk_errors(self.directory):
            self._finish()
            self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays)))
        self._sealed = self._background.submit(self._seal, step)

    def restore(
        self, like: TrainState, shardings: PyTree[jax.sharding.Sharding], warn: Callable[[str], None]
    ) -> tuple[int, TrainState] | None:
        """Returns the newest readable state with its step, or None if there are no checkpoints.

        `like` has the structure of the state (shapes suffice), and `shardings` are those of the restored arrays, which
        need not be those of the saved ones: a PyTree of the same structure, or one for all arrays. A checkpoint that is
        damaged, or that of another step, is reported by `warn`, renamed to `<step>.corrupt`, and the one before it is
        tried. Raises `BadInput` if none can be read, and for system errors that do not come from the files; nothing is
        then renamed.
        """
        arrays, static = eqx.partition(like, lambda leaf: hasattr(leaf, "dtype"))
        places = jax.tree.broadcast(shardings, arrays)
        shapes = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), arrays, places
        )
        abstract = _as_dict(shapes)
        found = self.steps()
        for step in reversed(found):
            try:
                restored = self._read(step, abstract, warn)
            except _Damaged as error:
                aside = f"; set aside as {step}.corrupt" if self.writing else ""
                warn(f"checkpoint {step} is corrupt ({error}){aside}, trying the one before it")
                if self.writing:
                    self._set_aside(step)
                continue
            leaves = [restored[name] for name in abstract]
            return step, eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), leaves), static)
        if found or any(entry.name.endswith(".corrupt") for entry in self.directory.iterdir()):
            # Also when all have been renamed already: starting afresh would delete the metrics of the run.
            raise BadInput(
                "run_dir",
                f"none of the checkpoints in {self.directory} can be read",
                "Choose another directory to start afresh, or delete this one",
            )
        return None

    def require_saved(self) -> None:
        """Raises the error of a failed save, if the last one has failed by now; waits for nothing."""
        if self._sealed is not None and self._sealed.done():
            self.wait()

    def wait(self) -> None:
        """Waits until all saves are on the disk."""
        with disk_errors(self.directory):
            self._finish()

    def wait_sealed(self) -> None:
        """Waits until the last save is complete and sealed. Raises if it failed. Any thread may call it."""
        if self._sealed is not None and not self._sealed.result():
            raise OSError("the last save failed")

    def close(self) -> None:
        """Waits for all saves, and releases the directory."""
        self.wait()
        self._background.shutdown()
        self.manager.close()

    def _finish(self) -> None:
        # An error of the save is raised by the first line, and one of the checksums by the last, each once.
        self.manager.wait_until_finished()
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()

    def _seal(self, step: int) -> bool:
        # A process that is killed before the last line leaves a complete checkpoint without checksums. It is restored
        # with a warning, because rejecting it would lose progress.
        try:
            self.manager.wait_until_finished()
        except Exception:  # also raised in the main thread
            return False
        if not is_first():
            return True
        seal = self.directory / str(step) / SEAL
        # Written atomically: incomplete checksums would make an intact checkpoint look damaged.
        write_atomically(seal, json.dumps({"step": step, "files": _digests(seal.parent)}).encode())
        self.on_sealed(step)
        return True

    def _read(
        self, step: int, abstract: dict[str, jax.ShapeDtypeStruct], warn: Callable[[str], None]
    ) -> dict[str, jax.Array]:
        sealed = False
        try:
            sealed = _checked_once(self.directory / str(step), step)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            restored = self.manager.restore(step, args=args)["state"]
            _require_step(int(restored["step"]), step)  # seals of older versions do not name it
            if not sealed:
                warn(f"checkpoint {step} has no {SEAL}: it is restored unchecked")
            return restored
        except _Damaged:
            raise
        except Exception as error:
            cause: BaseException = error
            while type(cause) is Exception and cause.__cause__ is not None:  # orbax wraps all errors, even Ctrl-C
                cause = cause.__cause__
            if not isinstance(cause, Exception):
                raise KeyboardInterrupt from error
            if not sealed and _is_damage(cause):
                raise _Damaged((str(cause).strip() or type(cause).__name__).splitlines()[0][:160]) from error
            if trouble := _system_error(cause):
                problem = f"checkpoint {step} in {self.directory} cannot be read ({trouble})"
                hint = "The checkpoint is unchanged: resolve the error and run the same command again"
                raise BadInput("run_dir", problem, hint) from error
            raise

    def _set_aside(self, step: int) -> None:
        target = self.directory / f"{step}.corrupt"

        def rename() -> None:
            if target.exists():
                target.rmtree()
            (self.directory / str(step)).rename(target)

        from_first(rename)
        self.manager.reload()


def _digests(folder: epath.Path) -> dict[str, int]:
    digests = {}
    for entry in sorted(folder.iterdir()):  # epath has no recursive glob, and it would be slow on a bucket
        if entry.is_dir():
            digests |= {f"{entry.name}/{name}": digest for name, digest in _digests(entry).items()}
        elif not (entry.name == SEAL or (entry.name.startswith(f"{SEAL}.") and entry.name.endswith(".tmp"))):
            digests[entry.name] = zlib.crc32(entry.read_bytes())
    return digests


class _Damaged(Exception):
    """Raised for a checkpoint whose files are damaged or missing."""


def _checked_once(folder: epath.Path, step: int) -> bool:
    """As `_check_seal`, which the first of several processes calls for all."""

    def verdict() -> tuple[bool, str | None]:
        try:
            return _check_seal(folder, step), None
        except _Damaged as error:
            return False, str(error)

    sealed, damage = from_first(verdict)
    if damage is not None:
        raise _Damaged(damage)
    return sealed


def _check_seal(folder: epath.Path, step: int) -> bool:
    """Whether there are checksums. Raises `_Damaged` if the files do not match them, or they are of another step."""
    # orbax does not detect flipped bits, and for a damaged file its threads print tracebacks at exit.
    if not (folder / SEAL).exists():
        return False
    try:
        content = json.loads((folder / SEAL).read_text())
        expected = dict(content.get("files", content))  # older versions wrote the files alone
        _require_step(int(content.get("step", step)), step)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"the file {SEAL} is damaged") from error
    found = _digests(folder)
    for name in expected | found:
        if expected.get(name) != found.get(name):
            raise _Damaged(f"the file {name} is {'missing' if name not in found else 'damaged'}")
    return True


def damage_of(folder: epath.Path, step: int) -> str | None:
    """Returns what is wrong with the checkpoint of a step by its seal, in a clause; None if it is intact."""
    try:
        return None if _check_seal(folder, step) else f"the file {SEAL} is missing"
    except _Damaged as error:
        return str(error)


def _require_step(found: int, step: int) -> None:
    if found != step:
        raise _Damaged(f"it is the checkpoint of step {found}, renamed")


def _is_damage(error: BaseException) -> bool:
    """Whether an error of orbax, json or tensorstore is caused by a damaged or missing file."""
    if isinstance(error, ValueError):
        status = _status(error)
        return status is None or status in DAMAGE_CODES
    # The last three are raised for metadata that is valid JSON with unexpected content.
    return isinstance(error, FileNotFoundError | IsADirectoryError | LookupError | TypeError | AttributeError)


def _system_error(error: BaseException) -> str | None:
    """Returns the message of a system error; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    status = _status(error)
    if not isinstance(error, ValueError) or status is None or status in DAMAGE_CODES:
        return None
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else status


def _status(error: BaseException) -> str | None:
    match = re.match(r"([A-Z_]+): ", str(error))
    return match[1] if match else None


def _as_dict(arrays: PyTree) -> dict[str, Any]:
    # By name: checkpoints do not depend on the order of fields, and their files can be inspected.
    leaves, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
