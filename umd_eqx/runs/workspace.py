"""The run directory: its name, and its record of the configuration and the environment."""

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of
from umd_eqx.core.json_files import read_json
from umd_eqx.core.types import same_tokenizer
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import as_flag, completed, differences, dump, flatten, identity_fields, run_identity
from umd_eqx.recipes.pretrain import PRETRAIN

RUN_FORMAT = 2
"""Format version of a run, increased when the same configuration would train other weights.

An example is a change in the order of the images. A `config.json` without this entry has format 1.
"""

PACKAGES = ("umd_eqx", "jax", "jaxlib", "equinox", "optax", "diffrax", "grain", "orbax-checkpoint", "numpy")
MAX_NAME_LENGTH = 100


def default_run_dir(preset: str, config: Config, recipe: Config, *, parent: Path = Path("runs")) -> Path:
    """The default run directory: `<parent>/<preset>`, followed by the overrides that affect the results.

    Fields that the recipe lacks, because one of its parts has another type, are omitted if they have their defaults.
    Names that are too long end in a hash instead.
    """
    old, new = run_identity(recipe), run_identity(config)
    changed = {name for name, value in new.items() if name not in old or old[name] != value}
    told = {as_flag(name): new[name] for name in changed if not _is_default(name, old, new)}
    words = [f"{flag}={_plain(value)}" for flag, value in sorted(told.items())]
    name = ",".join([preset, *words])
    if len(name) > MAX_NAME_LENGTH:
        name = f"{name[:MAX_NAME_LENGTH]}-{sha256_of(name.encode())[:8]}"
    return parent / name


def nearest_preset(config: Config) -> tuple[str, Config]:
    """The name and recipe of the preset with the fewest differences from this configuration."""
    recipes = {name: preset() for name, preset in PRETRAIN.items()}

    def distance(name: str) -> tuple[int, int]:
        recipe = recipes[name]
        made = differences(run_identity(recipe), run_identity(config))
        # Some presets differ only in their tokenizer, which is not part of the identity.
        return len(made), len(differences(flatten(dump(recipe)), flatten(dump(config))))

    name = min(recipes, key=distance)
    return name, recipes[name]


def claim(run_dir: Path, config: Config, preset: str | None) -> dict[str, Any] | None:
    """Checks that the directory is empty or holds a run of this configuration. Writes nothing: see `record`.

    `preset` is the requested preset, or None if none was named.

    **Returns:** the contents of its `config.json`; None if the directory is empty.

    **Raises:** `BadInput`, naming the field, if the directory holds a run of another configuration, or other files.
    """
    path = run_dir / "config.json"
    if not path.exists():
        foreign = sorted(entry.name for entry in run_dir.iterdir() if entry.name != ".lock" and entry.suffix != ".tmp")
        if foreign:
            problem = f"{run_dir} holds {foreign[0]!r}, which is not part of a run"
            raise BadInput("run_dir", problem, "Choose an empty or new directory")
        return None
    try:
        kept = read_json(path)
        old = identity_fields(flatten(completed(kept["config"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput("run_dir", f"{path} cannot be read", "Choose another directory") from error
    _require_same(old, kept, config, preset, os.fspath(run_dir))
    return kept


def require_same_run(kept: Mapping[str, Any], config: Config, place: str) -> None:
    """Raises `BadInput`, naming the field, if the content of a `config.json` is of another run than `config`.

    `place` is where it was found. Raises the errors of reading a dump if the content is not that of a `config.json`.
    """
    _require_same(identity_fields(flatten(completed(kept["config"]))), kept, config, None, place)


def _require_same(
    old: Mapping[str, Any], kept: Mapping[str, Any], config: Config, preset: str | None, place: str
) -> None:
    changed = differences(old, run_identity(config))
    if same_tokenizer(*changed.get("latent.digest", ("", None))):
        del changed["latent.digest"]
    changed = _unlike_data(changed, old.get("data.content"), config.data.content)
    if changed:
        name, (was, now) = next(iter(changed.items()))
        field = name.removesuffix(".type")
        if name.startswith("start."):
            problem = f"the run in {place} was started with other weights, or they have changed since"
            raise BadInput("from", problem, "Use the same weights, or another `run_dir` to start a new run")
        if name.startswith("latent"):
            problem = f"the run in {place} was started with another tokenizer or other latents"
            raise BadInput("tokenizer", problem, "Use the same, or another `run_dir` to start a new run")
        if name == "data.content":
            problem = f"the run in {place} was started with other images"
            raise BadInput("data.source.dir", problem, "Use the same, or another `run_dir` to start a new run")
        if preset is not None and kept.get("preset") != preset:
            field, was, now = "preset", kept.get("preset"), preset
        raise BadInput(
            field,
            f"the run in {place} was started with {_plain(was)}, and now it is {_plain(now)}",
            "Use the old value to resume it, or another `run_dir` to start a new run",
        )


def _unlike_data(changed: Mapping[str, Any], was: str | None, now: str | None) -> dict[str, Any]:
    """Removes the differences that do not matter, given the fingerprints of the data of a run and of a configuration.

    Data with the same fingerprint are the same under any name and in any kind of source. Without one of the
    fingerprints, as in runs of older versions, the fields of the source are compared.
    """
    if was is None or now is None:
        return {name: values for name, values in changed.items() if name != "data.content"}
    return {name: values for name, values in changed.items() if was != now or not name.startswith("data.source.")}


def require_same_format(run_dir: Path, recorded: Mapping[str, Any]) -> None:
    """Raises `BadInput` if the unfinished run in a directory has another `RUN_FORMAT`, and cannot be resumed.

    `recorded` holds the contents of its `config.json`. Finished runs of any format can still be read.
    """
    kept = recorded.get("format", 1)
    if kept == RUN_FORMAT:
        return
    version = "a newer" if isinstance(kept, int) and kept > RUN_FORMAT else "an older"
    raise BadInput(
        "run_dir",
        f"the unfinished run in {run_dir} was started by {version} version of this program, which draws other batches",
        "Choose another directory to start a new run, or finish it with that version",
    )


def record(run_dir: Path, config: Config, preset: str, recipe: Config) -> dict[str, Any]:
    """Writes `config.json`: `RUN_FORMAT`, the preset, the overrides and the configuration. Returns its contents."""
    changed = differences(flatten(dump(recipe)), flatten(dump(config)))
    overrides = {as_flag(name): new for name, (_, new) in changed.items()}
    content = {"format": RUN_FORMAT, "preset": preset, "overrides": overrides, "config": dump(config)}
    save_json(run_dir / "config.json", content)
    return content


def environment(preset: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of `environment.json`: the command, the versions, the devices, and `facts` about the run."""
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


def _is_default(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a field that the recipe's type does not have is at its default in the new type."""
    parent, _, field = name.rpartition(".")
    if name in old or f"{parent}.type" not in new:
        return False
    defaults = flatten(completed({"type": new[f"{parent}.type"]}))
    return field in defaults and defaults[field] == new[name]


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", str(value)).strip("-")
