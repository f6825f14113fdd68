"""The directory of a run: whose it is, what it holds, and that nobody else writes to it."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of
from umd_eqx.core.types import same_tokenizer
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import as_flag, completed, differences, dump, flatten, only_the_run, run_identity
from umd_eqx.recipes.pretrain import PRETRAIN

RUN_FORMAT = 2
"""Of a run: raised where the same configuration would train other weights, as when the order of the images changes.

A `config.json` without this number is of format 1.
"""

PACKAGES = ("umd_eqx", "jax", "jaxlib", "equinox", "optax", "diffrax", "grain", "orbax-checkpoint", "numpy")
LONGEST_NAME = 100


def default_run_dir(preset: str, config: Config, recipe: Config, *, parent: Path = Path("runs")) -> Path:
    """`runs/<preset>`, followed by what was changed of the recipe where that makes another run.

    A field that the recipe does not have, because a part of it is of another type, is left out at its default. A name
    that grew too long ends in a hash instead. `parent` is another folder in the place of `runs`.
    """
    old, new = run_identity(recipe), run_identity(config)
    changed = {name for name, value in new.items() if name not in old or old[name] != value}
    told = {as_flag(name): new[name] for name in changed if not _by_default(name, old, new)}
    words = [f"{flag}={_plain(value)}" for flag, value in sorted(told.items())]
    name = ",".join([preset, *words])
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{sha256_of(name.encode())[:8]}"
    return parent / name


def nearest_preset(config: Config) -> tuple[str, Config]:
    """The preset of which least was changed to make this configuration: its name and recipe."""
    recipes = {name: preset() for name, preset in PRETRAIN.items()}

    def distance(name: str) -> tuple[int, int]:
        recipe = recipes[name]
        made = differences(run_identity(recipe), run_identity(config))
        return len(made), len(differences(flatten(dump(recipe)), flatten(dump(config))))  # tokenizers tell some apart

    name = min(recipes, key=distance)
    return name, recipes[name]


@contextlib.contextmanager
def own(run_dir: Path, field: str = "--run-dir") -> Iterator[None]:
    """Holds the directory for this process, making it if need be. Ends with the process, however it ends.

    `field` is the flag that named it. Raises `BadInput` if another process holds it, or if it cannot be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise BadInput(field, f"{run_dir} cannot be written to ({error.strerror})", "Choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            hint = "Wait for it, stop it, or choose another directory"
            raise BadInput(field, f"another process is running in {run_dir}", hint) from error
        yield


def claim(run_dir: Path, config: Config, preset: str | None) -> dict[str, Any] | None:
    """Checks that the directory is this run's, or nobody's yet. Writes nothing: see `record`.

    `preset` is the one that was asked for, None if none was by its name.

    **Returns:** what its `config.json` holds; None where it is nobody's yet.

    Raises `BadInput`, naming the field, if it holds a run that a different configuration made, or no run at all but
    something else.
    """
    path = run_dir / "config.json"
    if not path.exists():
        foreign = sorted(entry.name for entry in run_dir.iterdir() if entry.name != ".lock" and entry.suffix != ".tmp")
        if foreign:
            problem = f"{run_dir} holds {foreign[0]!r} and no run"
            raise BadInput("--run-dir", problem, "Choose an empty or a new directory")
        return None
    try:
        kept = json.loads(path.read_text())
        old = only_the_run(flatten(completed(kept["config"])))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput("--run-dir", f"{path} cannot be read", "Choose another directory") from error
    changed = differences(old, run_identity(config))
    if same_tokenizer(*changed.get("latent.digest", ("", None))):
        del changed["latent.digest"]
    if changed:
        name, (was, now) = next(iter(changed.items()))
        field = f"--{as_flag(name).replace('_', '-')}"
        if name.startswith("start."):
            problem = f"the run in {run_dir} began with other weights, or those there have changed since"
            raise BadInput("--from", problem, "Give the same weights, or another --run-dir to start a new run")
        if name.startswith("latent"):
            problem = f"the run in {run_dir} began with another tokenizer, or other latents"
            raise BadInput("--tokenizer", problem, "Give the same, or another --run-dir to start a new run")
        if preset is not None and kept.get("preset") != preset:
            field, was, now = "preset", kept.get("preset"), preset
        raise BadInput(
            field,
            f"the run in {run_dir} was started with {_plain(was)}, and now it is {_plain(now)}",
            "Ask for the old value to go on with it, or for another --run-dir to start a new run",
        )
    return kept


def require_same_format(run_dir: Path, recorded: Mapping[str, Any]) -> None:
    """Raises `BadInput` where the run in a directory was begun by a version that would have trained other weights.

    `recorded` is what its `config.json` holds. For a run that is to be continued: finished ones of any format are read
    everywhere.
    """
    kept = recorded.get("format", 1)
    if kept == RUN_FORMAT:
        return
    version = "a newer" if isinstance(kept, int) and kept > RUN_FORMAT else "an older"
    raise BadInput(
        "--run-dir",
        f"the unfinished run in {run_dir} was begun by {version} version of this program, which draws other batches",
        "Choose another directory to start anew, or finish it with that version",
    )


def record(run_dir: Path, config: Config, preset: str, recipe: Config) -> dict[str, Any]:
    """Writes `config.json`: `RUN_FORMAT`, the preset, what was changed of its recipe, and the whole configuration.

    Returns what it holds.
    """
    changed = differences(flatten(dump(recipe)), flatten(dump(config)))
    overrides = {as_flag(name): new for name, (_, new) in changed.items()}
    content = {"format": RUN_FORMAT, "preset": preset, "overrides": overrides, "config": dump(config)}
    save_json(run_dir / "config.json", content)
    return content


def environment(preset: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `environment.json` holds: the command, the versions, the devices, and `facts` about the run."""
    return {
        "preset": preset,
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
        **facts,
    }


def _by_default(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a value is the default of a field that only the type has which a part has now."""
    parent, _, field = name.rpartition(".")
    if name in old or f"{parent}.type" not in new:
        return False
    defaults = flatten(completed({"type": new[f"{parent}.type"]}))
    return field in defaults and defaults[field] == new[name]


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", str(value)).strip("-")
