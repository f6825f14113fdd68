"""Opens several runs for a comparison, and groups those whose recipes differ only in the seed."""

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from umd_eqx.core.errors import BadInput
from umd_eqx.core.hashes import sha256_of_json
from umd_eqx.core.json_files import read_json
from umd_eqx.recipes.dump import NON_IDENTITY_FIELDS, as_flag, completed, flatten
from umd_eqx.report import RunDirectory
from umd_eqx.report.comparison import UNSET, Comparison, Group
from umd_eqx.runs.measured import with_measurements
from umd_eqx.runs.recorded import recorded_run
from umd_eqx.runs.remeasure import NON_RESULT_FIELDS
from umd_eqx.runs.workspace import RUN_FORMAT

NOT_COMPARED = (
    *(name for name in NON_IDENTITY_FIELDS if name != "eval"),
    "seed",
    "data.source",
    "data.content",
    "start",
)
"""Fields of a configuration that are not compared, or not by their values: see `settings_of`."""

MAX_STARTS = 4
"""How many runs are followed from which a run was started."""


class Opened(NamedTuple):
    """Runs that were named, and what was noticed when they were opened."""

    runs: list[tuple[str, RunDirectory]]
    notes: list[str]


def open_runs(paths: Sequence[str | os.PathLike[str]], types: Iterable[type] = ()) -> Opened:
    """Reads run directories, each once. Files and folders that are not runs are left out, with a note.

    **Arguments:**

    - `paths`: the directories.
    - `types`: user-defined classes that their configurations may contain.

    **Returns:** the runs with their labels: the names of the directories or, where two are the same, the paths.

    **Raises:** `BadInput` naming `runs` if one does not exist, with the nearest one that does, or if none is a run; and
    if a `metrics.jsonl` is corrupt.
    """
    types = tuple(types)
    notes, found = [], dict[Path, Path]()
    for path in map(Path, paths):
        require_existing(path)
        resolved = path.resolve()
        if resolved in found:
            notes.append(f"{path} was given more than once, and is shown once")
        elif not (path / "config.json").is_file():
            notes.append(f"{path} is not a run, and is left out")
        else:
            found[resolved] = path
    if not found:
        problem = f"none of {', '.join(map(str, paths))} is a run" if paths else "no RUN was given"
        raise BadInput("runs", problem, "Pass run directories, such as runs/umd")
    names = Counter(resolved.name for resolved in found)
    labels = [resolved.name if names[resolved.name] == 1 else str(path) for resolved, path in found.items()]
    runs = with_measurements([recorded_run(path, types) for path in found.values()])
    for label, run in zip(labels, runs, strict=True):
        if not _is_recipe(run):
            problem = f"{run.path / 'config.json'} cannot be read"
            raise BadInput("runs", problem, f"Restore it, or leave {label} out")
    return Opened(list(zip(labels, runs, strict=True)), notes)


def require_existing(path: Path) -> None:
    """Raises `BadInput` naming `runs` if a path does not exist, with the nearest existing one as a hint."""
    if path.exists():
        return
    there = path.parent
    while not there.is_dir() and there != there.parent:
        there = there.parent
    beside = sorted(str(there / entry.name) for entry in there.iterdir() if entry.is_dir()) if there.is_dir() else []
    runs = [name for name in beside if (Path(name) / "config.json").is_file()] or beside
    close = difflib.get_close_matches(str(path), runs, n=1, cutoff=0.5)
    some = f"There are {', '.join(runs[:3])}" if runs else "Pass run directories, such as runs/umd"
    hint = f"Did you mean {close[0]}?" if close else some
    raise BadInput("runs", f"there is no {path}", hint)


def compare(paths: Sequence[str | os.PathLike[str]], types: Iterable[type] = ()) -> Comparison:
    """Reads runs, and groups those whose recipes differ only in the seed.

    Runs on equal images are compared wherever these are stored, and runs that start from others by the recipes of
    these, as long as their directories exist. Settings that affect neither the weights nor a measurement do not count.

    **Arguments:**

    - `paths`, `types`: as for `open_runs`.

    **Raises:** `BadInput` as `open_runs` does.
    """
    opened = open_runs(paths, types)
    members: dict[str, list[tuple[str, RunDirectory]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for label, run in opened.runs:
        own = settings_of(run.config["config"])
        key = sha256_of_json(own)
        settings[key] = own
        members.setdefault(key, []).append((label, run))
    names = [name for name in dict.fromkeys(n for own in settings.values() for n in own) if _differs(name, settings)]
    groups = []
    for key, runs in members.items():
        shown = dict.fromkeys(map(as_flag, names), UNSET)
        shown |= {as_flag(name): settings[key][name] for name in names if name in settings[key]}
        if "data" in shown:
            shown["data"] = _images(runs[0][1].config["config"])
        groups.append(_group(runs, settings[key], shown, {group.name for group in groups}))
    return Comparison(tuple(groups), (*opened.notes, *_notes(groups), *_unlike_evaluations(settings)))


def settings_of(recipe: Mapping[str, Any], starts: int = MAX_STARTS) -> dict[str, Any]:
    """Returns the settings of a recipe that are compared, by dotted name; lists of plain values are kept whole.

    `data` is the fingerprint of the images (their name, for runs of older versions, which have no fingerprint), and
    `start...` are the settings of the run that the weights are from, or else their digest.

    **Arguments:**

    - `recipe`: a dumped configuration of any version.
    - `starts`: how many runs are followed from which a run was started.
    """
    whole = completed(dict(recipe))
    flat = flatten({name: value for name, value in whole.items() if name not in ("start", "data")}, plain_lists=True)
    data = whole.get("data") if isinstance(whole.get("data"), dict) else {}
    flat |= flatten(data, "data", plain_lists=True)
    found = {
        name: value
        for name, value in flat.items()
        if not any(f"{name}.".startswith(f"{skip}.") for skip in NOT_COMPARED)
        and not (name.startswith("eval.") and name.count(".") == 2 and name.endswith(NON_RESULT_FIELDS))
    }
    found["data"] = data.get("content") or _named(data)
    start = whole.get("start")
    if isinstance(start, dict):
        before = _recipe_at(start.get("source")) if starts else None
        given = {"digest": start.get("digest")} if before is None else settings_of(before, starts - 1)
        found |= {f"start.{name}": value for name, value in given.items()} | {"start.weights": start.get("weights")}
    return found


def _named(data: Any) -> str:
    source = data.get("source") if isinstance(data, Mapping) else None
    source = source if isinstance(source, Mapping) else {}
    return str(source.get("name") or source.get("title") or source.get("type") or "unknown images")


def _images(recipe: Mapping[str, Any]) -> str:
    """The name of the images and the start of their fingerprint, as it is shown."""
    data = completed(dict(recipe)).get("data")
    content = data.get("content") if isinstance(data, dict) else None
    return _named(data) + (f" ({str(content)[:8]})" if content else ", no fingerprint")


def _recipe_at(source: Any) -> dict[str, Any] | None:
    try:
        recipe = read_json(Path(source) / "config.json")["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _is_recipe(run: RunDirectory) -> bool:
    return isinstance(run.config, Mapping) and isinstance(run.config.get("config"), dict)


def _differs(name: str, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    return len({json.dumps(own.get(name, UNSET), sort_keys=True) for own in settings.values()}) > 1


def _unlike_evaluations(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A note on the settings in which evaluations of the same name and type differ."""
    names = dict.fromkeys(name for own in settings.values() for name in own if name.startswith("eval."))
    unlike = []
    for name in names:
        values = [own[name] for own in settings.values() if name in own]
        if any(value != values[0] for value in values):
            unlike.append(name.removesuffix(".type"))
    more = f" and {len(unlike) - 4} more" if len(unlike) > 4 else ""
    return [f"evaluations had different settings: {', '.join(unlike[:4])}{more}"] if unlike else []


def _group(
    runs: Sequence[tuple[str, RunDirectory]], settings: Mapping[str, Any], shown: Mapping[str, Any], taken: set[str]
) -> Group:
    recipes = [run.config["config"] for _, run in runs]
    seeds = [recipe.get("seed") if isinstance(recipe.get("seed"), int) else None for recipe in recipes]
    own_name = runs[0][1].path.resolve().name
    plain = re.sub(r"[,_-]?seed[=_-]?\d+", "", own_name) if len(runs) > 1 else own_name
    names = (plain, runs[0][0], f"{runs[0][0]} ({len(taken) + 1})")
    batch_size = settings.get("data.batch_size")
    return Group(
        name=next(name for name in names if name and name not in taken),
        runs=tuple(run for _, run in runs),
        labels=tuple(label for label, _ in runs),
        seeds=tuple(seeds),
        settings=shown,
        data=settings["data"],
        batch_size=batch_size if isinstance(batch_size, int) else None,
        recipe=recipes[0],
    )


def _notes(groups: Sequence[Group]) -> list[str]:
    notes = []
    for group in groups:
        for label, run in zip(group.labels, group.runs, strict=True):
            step, steps = (run.rows[-1]["step"] if run.rows else 0), run.count("steps")
            if steps is not None and step < steps:
                notes.append(f"{label} is not finished: it is at step {step:,} of {steps:,}")
            if not run.evaluations():
                notes.append(f"{label} has no evaluation yet")
            if (kept := run.config.get("format", 1)) != RUN_FORMAT:
                notes.append(f"{label} was trained by another version (format {kept}), which draws other batches")
        repeated = [seed for seed, count in Counter(group.seeds).items() if count > 1]
        if repeated:
            notes.append(f"{group.name}: several runs have the same recipe and the seed {repeated[0]}")
    images: dict[str, list[Group]] = {}
    for group in groups:
        images.setdefault(group.data, []).append(group)
    if len(images) > 1:
        each = (f"{', '.join(g.name for g in some)}: {_images(some[0].recipe)}" for some in images.values())
        notes.append(f"the runs are on different images; the best are those among runs on the same: {'; '.join(each)}")
    return notes
