"""Checkpoints: the training state, saved while training goes on, restored bit for bit."""

import dataclasses
import json
import logging
import os
import re
import shutil
import sys
import warnings
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
from umd_eqx.training.step import TrainState

FOLDER = "checkpoints"
"""Where they lie in a run directory."""

SEAL = "crc32.json"
"""The checksums of a checkpoint's files, beside them."""

DAMAGE = ("DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
"""What tensorstore says of a damaged or missing file. UNKNOWN, PERMISSION_DENIED, ... are the machine's trouble."""


class Checkpoints:
    """The checkpoints of one run directory. A save that was cut short leaves nothing that could be mistaken for one.

    **Arguments:**

    - `directory`: where they lie, one folder a step.
    - `keep`: how many of the newest are kept.
    - `writing`: False where the run is somebody else's: it is only read, and nothing in it is changed.
    """

    def __init__(self, directory: epath.Path, *, keep: int, writing: bool = True):
        _hush()
        self.directory, self.writing = directory, writing
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, read_only=not writing, create=writing
        )
        self.manager = ocp.CheckpointManager(directory, options=options, item_names=("state",))
        self._background = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealed: Future[None] | None = None

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState) -> None:
        """Begins to save; returns once the state is copied. A failure of the save before is raised here.

        In the background the checkpoint is completed, and then sealed: so a run that is killed later has checksums for
        its newest one, too.
        """
        if step in self.manager.all_steps():
            return
        arrays = _as_dict(eqx.filter(state, eqx.is_array))
        if jax.default_backend() == "cpu":
            # There orbax would write from the very buffers that the next step is given to overwrite.
            arrays = jax.tree.map(jnp.copy, arrays)
        with disk_errors(self.directory):
            self._finish()
            self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays)))
        self._sealed = self._background.submit(self._seal, step)

    def restore(
        self, like: TrainState, sharding: jax.sharding.Sharding, say: Callable[[str], None]
    ) -> tuple[int, TrainState] | None:
        """The newest state that can be read, with its step; None if there is none at all.

        `like` gives the structure (shapes will do), `sharding` where its arrays go. `say` is told of a checkpoint that
        is damaged; it is set aside as `<step>.corrupt`, and the one before it is tried. Raises `BadInput` if none can
        be read, and where the machine is at fault and not the files: then nothing is set aside.
        """
        arrays, static = eqx.partition(like, lambda leaf: hasattr(leaf, "dtype"))
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for name, leaf in _as_dict(arrays).items()
        }
        found = self.steps()
        for step in reversed(found):
            try:
                restored = self._read(step, abstract)
            except _Damaged as error:
                aside = f"; set aside as {step}.corrupt" if self.writing else ""
                say(f"checkpoint {step} is corrupt ({error}){aside}, trying the one before it")
                if self.writing:
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
        with disk_errors(self.directory):
            self._finish()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self.wait()
        self._background.shutdown()
        self.manager.close()

    def _finish(self) -> None:
        # An error of the save is raised by the first line, one of its seal by the last, each once.
        self.manager.wait_until_finished()
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()

    def _seal(self, step: int) -> None:
        # A process that is killed before the last line leaves a whole checkpoint without a seal, which is restored
        # unchecked: to refuse it would lose more than it saves.
        try:
            self.manager.wait_until_finished()
        except Exception:  # the main thread meets it itself
            return
        seal = self.directory / str(step) / SEAL
        # In one piece: half a seal would make a sound checkpoint look damaged.
        write_atomically(seal, json.dumps(_digests(seal.parent)).encode())

    def _read(self, step: int, abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        sealed = False
        try:
            sealed = _check_seal(self.directory / str(step))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            return self.manager.restore(step, args=args)["state"]
        except _Damaged:
            raise
        except Exception as error:
            cause: BaseException = error
            while type(cause) is Exception and cause.__cause__ is not None:  # orbax wraps all it meets, even Ctrl-C
                cause = cause.__cause__
            if not isinstance(cause, Exception):
                raise KeyboardInterrupt from error
            if not sealed and _is_damage(cause):
                raise _Damaged((str(cause).strip() or type(cause).__name__).splitlines()[0][:160]) from error
            if trouble := _trouble(cause):
                problem = f"checkpoint {step} in {self.directory} cannot be read ({trouble})"
                raise BadInput("--run-dir", problem, "It is as it was: mend that and run the same command") from error
            raise

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
        elif not (entry.name == SEAL or (entry.name.startswith(f"{SEAL}.") and entry.name.endswith(".tmp"))):
            digests[entry.name] = zlib.crc32(entry.read_bytes())
    return digests


class _Damaged(Exception):
    """A checkpoint whose files are not what was written."""


def _check_seal(folder: epath.Path) -> bool:
    """Whether there is a seal. Raises `_Damaged` if the files are not those that were sealed."""
    # orbax does not notice a flipped bit, and a damaged file makes its threads print tracebacks at exit.
    if not (folder / SEAL).exists():
        return False
    try:
        expected = json.loads((folder / SEAL).read_text())
    except ValueError as error:
        raise _Damaged(f"the file {SEAL} is damaged") from error
    found = _digests(folder)
    for name in expected | found:
        if expected.get(name) != found.get(name):
            raise _Damaged(f"the file {name} is {'missing' if name not in found else 'damaged'}")
    return True


def _is_damage(error: BaseException) -> bool:
    """Whether an error is one that a damaged or missing file makes of orbax, json or tensorstore."""
    if isinstance(error, ValueError):
        status = _status(error)
        return status is None or status in DAMAGE
    # The last three: a description that is still JSON, but says something else.
    return isinstance(error, FileNotFoundError | IsADirectoryError | LookupError | TypeError | AttributeError)


def _trouble(error: BaseException) -> str | None:
    """The machine's trouble, as a user is told; None if it is something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    status = _status(error)
    if not isinstance(error, ValueError) or status is None or status in DAMAGE:
        return None
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else status


def _status(error: BaseException) -> str | None:
    match = re.match(r"([A-Z_]+): ", str(error))
    return match[1] if match else None


def require_space(run_dir: epath.Path, state: PyTree, keep: int) -> None:
    """Raises `BadInput` if the disk has no room for the checkpoints of `state` (arrays or shapes) still to come.

    There are at most `keep` and the one being written. Those that `run_dir` holds already need no more room.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if hasattr(leaf, "dtype"))
    try:
        free = shutil.disk_usage(run_dir).free
    except OSError:  # a bucket
        return
    folder = run_dir / FOLDER
    # Only a complete one has a bare number for a name.
    there = sum(entry.name.isdecimal() for entry in folder.iterdir()) if folder.exists() else 0
    missing = keep + 1 - min(keep, there)
    if free < missing * size:
        fewer = ", or keep fewer with --checkpoint.keep" if missing > 1 else ""
        raise BadInput(
            "--run-dir",
            f"{run_dir} has {free / 1e9:.2f} GB free, and checkpoints need {missing * size / 1e9:.2f} GB more "
            f"({missing} of {size / 1e9:.2f} GB)",
            f"Free some space or choose another disk{fewer}",
        )


def _hush() -> None:
    # orbax tells its whole life at INFO, warns about its own defaults, and logs each error with a traceback. Then it
    # leaves its event loop, and each array that was still under way prints another one, or a warning that nobody waited
    # for it: hundreds for a full disk. Its errors reach us as exceptions.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_no_echo)
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _WithoutEchoes):
        sys.unraisablehook = _WithoutEchoes(sys.unraisablehook)


def _is_no_echo(record: logging.LogRecord) -> bool:
    return not any(
        echo in record.getMessage() for echo in ("exception was never retrieved", "destroyed but it is pending")
    )


@dataclasses.dataclass(frozen=True)
class _WithoutEchoes:
    report: Callable[[Any], object]

    def __call__(self, unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            self.report(unraisable)


def _as_dict(arrays: PyTree) -> dict[str, Any]:
    # By name, so that a checkpoint does not depend on the order of fields, and so that its files can be looked at.
    leaves, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
