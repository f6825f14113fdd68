"""Resuming a run from its mirror, where the run directory has nothing, or an older state than the mirror."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from umd_eqx.core.errors import BadInput, disk_trouble
from umd_eqx.core.files import write_atomically
from umd_eqx.core.json_files import parse_json
from umd_eqx.core.processes import is_first
from umd_eqx.core.remote import Remote, reason
from umd_eqx.recipes.config import CheckpointConfig, Config
from umd_eqx.runs.workspace import claim, require_same_run
from umd_eqx.training.checkpoint import FOLDER, SEAL, damage_of
from umd_eqx.training.mirror import RUN_FILES, Damaged, Mirror
from umd_eqx.training.mirroring import STAGING, Mirroring

FIELD = "checkpoint.mirror"

TRIES, PAUSE = 3, 2.0
"""How often the mirror is read before it counts as out of reach, and the seconds between."""


def claim_or_fetch(
    run_dir: Path, config: Config, preset: str | None, say: Callable[[str], None] = print
) -> dict[str, Any] | None:
    """Claims a run directory as `umd_eqx.runs.workspace.claim` does, after fetching a newer state from the mirror.

    The newest checkpoint of the mirror that is intact is fetched if the directory has no intact one of that step or a
    later one, with the files of the run beside it. One that is incomplete or damaged is reported by `say` and skipped.

    **Raises:** `BadInput` as `claim` does, and naming `checkpoint.mirror` if the mirror holds another run or nothing
    intact, or cannot be read where the directory has no checkpoint. Where it has one, that is only reported.
    """
    kept, url = claim(run_dir, config, preset), config.checkpoint.mirror
    if url is None:
        return kept
    mirror, local = Mirror(Remote(url, FIELD)), _newest_intact(run_dir / FOLDER)
    try:
        fetched = _persistently(lambda: _fetch_newer(mirror, run_dir, config, local, say))
    except BadInput:
        raise
    except Exception as error:
        if (trouble := disk_trouble(error)) is not None and trouble[0]:
            raise
        problem = f"{url} cannot be read ({reason(error)})"
        if local is None:
            hint = "Try again when it can, or leave this out to start without it"
            raise BadInput(FIELD, problem, hint) from error
        say(f"warning: the mirror {problem}: the run resumes from its directory")
        return kept
    finally:
        shutil.rmtree(run_dir / STAGING, ignore_errors=True)
    return claim(run_dir, config, preset) if fetched else kept


def mirroring(config: CheckpointConfig, run_dir: Path, say: Callable[[str], None]) -> Mirroring:
    """Returns the context that copies the checkpoints of a run to its mirror, if it has one and this process writes.

    `say` is called with lines of text.
    """
    mirror = None if config.mirror is None or not is_first() else Mirror(Remote(config.mirror, FIELD))
    return Mirroring(mirror, run_dir, config.keep, say)


def _persistently(function: Callable[[], bool]) -> bool:
    for tried in range(1, TRIES + 1):
        try:
            return function()
        except BadInput:
            raise
        except Exception:
            if tried == TRIES:
                raise
            time.sleep(PAUSE)
    raise AssertionError("unreachable")


def _fetch_newer(mirror: Mirror, run_dir: Path, config: Config, local: int | None, say: Callable[[str], None]) -> bool:
    """Fetches the newest intact checkpoint if it is newer than step `local`. Returns whether there was one."""
    steps = mirror.steps()
    for step, complete in steps.items():
        try:
            if not complete:
                if local is None or step > local:
                    raise Damaged("its upload was interrupted")
                continue
            files = mirror.run_files(step)
            _require_same(files, config, mirror.url, step)
            if local is not None and step <= local:
                return False
            say(f"fetching checkpoint {step} from {mirror.url}")
            folder = run_dir / STAGING
            shutil.rmtree(folder, ignore_errors=True)
            mirror.fetch(step, folder, lambda sizes: _require_space(run_dir, sizes))
        except Damaged as error:
            say(f"warning: checkpoint {step} at {mirror.url} cannot be used ({error}); trying the one before it")
            continue
        _install(run_dir, step, folder, files)
        return True
    if local is None and any(steps.values()):
        hint = "Choose another mirror or leave it out to start afresh, or delete this one"
        raise BadInput(FIELD, f"none of the checkpoints at {mirror.url} can be read", hint)
    return False


def _require_same(files: Mapping[str, bytes], config: Config, url: str, step: int) -> None:
    try:
        require_same_run(parse_json(files["config.json"]), config, url)
    except BadInput as error:
        hint = "Use the old value to resume it, or another `checkpoint.mirror` to start a new run"
        raise BadInput(error.field, error.problem, hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"config.json in {step}.zip cannot be read") from error


def _require_space(run_dir: Path, sizes: Mapping[str, int]) -> None:
    need, free = sum(sizes.values()), shutil.disk_usage(run_dir).free
    if free < need:
        problem = f"{run_dir} has {free / 1e9:.2f} GB free, and the checkpoint at the mirror has {need / 1e9:.2f} GB"
        raise BadInput("run_dir", problem, "Free some space or choose another disk")


def _install(run_dir: Path, step: int, checkpoint: Path, files: Mapping[str, bytes]) -> None:
    """Puts a fetched checkpoint and the files of its run into the run directory.

    A process that is killed meanwhile leaves the older state with rows that resuming drops: the checkpoint comes last.
    """
    # Without config.json, which comes first, the others would not be part of a run.
    for name in sorted(files, key=lambda name: name != "config.json"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / name, files[name])
    for name in RUN_FILES:
        if name not in files:
            (run_dir / name).unlink(missing_ok=True)
    target = run_dir / FOLDER / str(step)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        aside = target.with_name(f"{step}.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(target, aside)
    os.rename(checkpoint, target)


def _newest_intact(folder: Path) -> int | None:
    """Returns the newest step with a checkpoint that matches its seal or has none, or None."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    places = {step: folder / str(step) for step in steps}
    intact = (s for s, at in places.items() if not (at / SEAL).exists() or damage_of(epath.Path(at), s) is None)
    return next(intact, None)
