"""A run that is started again with other settings, twice at once, or after the clock was set back."""

import dataclasses
import os
import shutil
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

from faults.suite.apart import apart
from faults.suite.base import Fault, Outcome, Trial
from faults.suite.observed import observed_run
from faults.tiny import ended, let_go, numbers, start, tiny, wait_until_held

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import RectifiedFlow
from umd_eqx.core.sharding import make_mesh
from umd_eqx.objectives import masked_reconstruction
from umd_eqx.recipes.build import build
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump, flatten, run_identity
from umd_eqx.training.optimisers import LARS, Muon
from umd_eqx.training.trainable import AllExcept

STEPS, FIRST = 6, 2
DAY = 86_400
LONGEST = 800.0
"""Seconds for a run of a few seconds, on a machine that does other things."""
FILLED_IN = ("data.content", "data.expected")
"""Fields that a run sets itself, from the data that it finds."""


def base() -> Config:
    """The run that is started; it has evaluations, whose settings may change."""
    return tiny(optim__steps=STEPS)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the dotted name, the declared type and the value of each leaf of a configuration."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}")
    elif isinstance(value, tuple):
        for key, item in enumerate(value):
            yield from leaves(item, f"{name}.{key}")
    elif dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value), include_extras=True)
        for field in dataclasses.fields(value):
            inner, whole = getattr(value, field.name), f"{name}.{field.name}".lstrip(".")
            if dataclasses.is_dataclass(inner) or isinstance(inner, Mapping | tuple):
                yield from leaves(inner, whole)
            else:
                yield whole, hints[field.name], inner


def others(hint: Any, value: Any) -> list[Any]:
    """Other values of a leaf, the likelier to be valid first."""
    if typing.get_origin(hint) is Annotated:
        return others(typing.get_args(hint)[0], value)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [x for kind in typing.get_args(hint) for x in others(kind, value)]
    if typing.get_origin(hint) is Literal:
        return [x for x in typing.get_args(hint) if x != value]
    if hint is bool:
        return [not value]
    if hint is int:
        old = value if type(value) in (int, float) else 4
        return [x for x in (int(old) + 1, int(old) * 2, int(old) // 2, 8) if x != value]
    if hint is float:
        old = value if type(value) in (int, float) else 0.5
        return [x for x in (old * 0.5, old * 2, old + 0.125, 0.25) if x != value]
    if hint is str:
        return [x for x in ("mu/4", "train[:50%]", "test[:50%]", "float32", "eps", "all", "x0", "other") if x != value]
    return []


def with_value(tree: Any, name: str, value: Any) -> Any:
    """A configuration with another value of one leaf."""
    first, _, rest = name.partition(".")
    if isinstance(tree, Mapping):
        return {**tree, first: with_value(tree[first], rest, value) if rest else value}
    if isinstance(tree, tuple):
        new = with_value(tree[int(first)], rest, value) if rest else value
        return (*tree[: int(first)], new, *tree[int(first) + 1 :])
    new = with_value(getattr(tree, first), rest, value) if rest else value
    return dataclasses.replace(tree, **{first: new})


def changes(identity: bool, stride: int) -> Iterator[tuple[str, Config]]:
    """Yields each field that makes a run, or each that does not, with a valid configuration in which it is another.

    `stride`: only each n-th field.
    """
    config, spec = base(), base().data.describe()
    made = run_identity(config)
    chosen = [leaf for leaf in leaves(config) if (leaf[0] in made) == identity and leaf[0] not in FILLED_IN]
    for name, hint, value in chosen[::stride]:
        for other in others(hint, value):
            try:
                changed = with_value(config, name, other)
                # Some fields have no effect, and some are described by the data.
                if flatten(dump(changed)) == flatten(dump(config)) or changed.data.describe() is None:
                    continue
                build(changed, spec, make_mesh(sharding=changed.sharding)).abstract_state()
            except (BadInput, TypeError, ValueError):
                continue
            yield name, changed
            break
    if identity and stride == 1:
        for name, part in (
            ("optim", Muon(steps=STEPS)),
            ("optim", LARS(steps=STEPS)),
            ("path", RectifiedFlow()),
            ("objective", masked_reconstruction()),
            ("trainable", AllExcept(("encoder",))),
        ):
            yield name, dataclasses.replace(config, **{name: part})


def content(run_dir: Path) -> dict[str, bytes]:
    """All files of a run directory."""
    found = (path for path in run_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in found}


def refused(folder: str, stride: int) -> dict[str, Any]:
    """In a process of its own: starts a run, then again with each field that makes it changed, or each n-th."""
    directory, wrong, count = Path(folder, "run"), [], 0
    observed_run(base(), directory, limit_steps=FIRST, preset="tiny")
    before = content(directory)
    for name, changed in changes(identity=True, stride=stride):
        count += 1
        seen = observed_run(changed, directory, preset="tiny")
        field, said = seen["error"] or ("", "nothing")
        # The field of a type is that of its part; of a tuple that is another, the first member is named.
        if not (f"{field}.".startswith(f"{name}.") or f"{name}.".startswith(f"{field}.")):
            wrong.append(f"{name}: {field}: {said}")
        elif "was started with" not in said:
            wrong.append(f"{name}: {said}")
        elif content(directory) != before:
            wrong.append(f"{name}: files were changed")
    return {"tried": count, "wrong": wrong}


def accepted(folder: str, stride: int) -> dict[str, Any]:
    """In a process of its own: goes on with each field changed that does not make the run, and with all of them."""
    begun, wrong, count, together = Path(folder, "begun"), [], 0, base()
    observed_run(base(), begun, limit_steps=FIRST, preset="tiny")
    shutil.copytree(begun, Path(folder, "whole"))
    whole = observed_run(base(), Path(folder, "whole"), preset="tiny")
    each = list(changes(identity=False, stride=stride))
    for name, changed in each:
        together = with_value(together, name, next(x for leaf, _, x in leaves(changed) if leaf == name))
    for name, changed in [("all of them", together), *each]:
        count += 1
        directory = Path(folder, f"run-{count}")
        shutil.copytree(begun, directory)
        seen = observed_run(changed, directory, preset="tiny")
        if seen["error"] or seen["restored"] is None or seen["last"] != whole["last"]:
            wrong.append(f"{name}: {seen['error'] or 'another result'}")
        shutil.rmtree(directory)
    return {"tried": count, "wrong": wrong}


def settings(function: Callable[[str, int], Any], folder: Path, stride: int = 1) -> Outcome:
    """One of the two functions above."""
    seen = apart(function, folder, str(folder), stride, environment={"WANDB_MODE": "disabled"}).result()
    tried, wrong = seen["tried"], seen["wrong"]
    return Outcome(not wrong and tried > 0, "; ".join(wrong), {"right": tried - len(wrong), "tried": tried})


def second_run(folder: Path, link: bool) -> Outcome:
    """While a run is on, another one with its directory, or with a link to it, is refused; the first ends as alone."""
    alone, run_dir = folder / "alone", folder / "run"
    assert ended(start(alone), LONGEST)[0] == 0
    first = start(run_dir, hold_after=3)
    wait_until_held(first, run_dir, LONGEST)
    other = run_dir
    if link:
        other = folder / "link"
        other.symlink_to(run_dir)
    code, _, error = ended(start(other), LONGEST)
    let_go(run_dir)
    end = ended(first, LONGEST)[0]
    facts = {
        f"not refused ({code}: {error})": code == 2 and "another process is running" in error,
        "several lines": len(error.splitlines()) == 1,
        "the first was disturbed": end == 0 and numbers(run_dir) == numbers(alone),
    }
    wrong = [what for what, holds in facts.items() if not holds]
    return Outcome(not wrong, "; ".join(wrong), {"right": not wrong, "tried": 1})


def at_once(folder: Path) -> Outcome:
    """Of two runs that are started together, one is refused, and the other is as if it were alone."""
    alone, run_dir = folder / "alone", folder / "run"
    assert ended(start(alone), LONGEST)[0] == 0
    ends = [ended(process, LONGEST) for process in [start(run_dir, seconds_a_step=0.2) for _ in range(2)]]
    said = [error for code, _, error in ends if code == 2]
    facts = {
        f"exit codes {[code for code, *_ in ends]}": sorted(code for code, *_ in ends) == [0, 2],
        f"said {said}": len(said) == 1 and len(said[0].splitlines()) == 1,
        "another result": numbers(run_dir) == numbers(alone),
    }
    wrong = [what for what, holds in facts.items() if not holds]
    return Outcome(not wrong, "; ".join(wrong), {"right": not wrong, "tried": 1})


def session(run_dir: str, until: int, days: float) -> dict[str, Any]:
    """In a process of its own: a session of a run in which the clock is set otherwise."""
    now, now_ns = time.time, time.time_ns

    def other() -> float:
        return now() + days * DAY

    def other_ns() -> int:
        return now_ns() + int(days * DAY * 1e9)

    with mock.patch.object(time, "time", other), mock.patch.object(time, "time_ns", other_ns):
        return observed_run(base(), Path(run_dir), limit_steps=until, preset="tiny")


def clock(folder: Path, days: float) -> Outcome:
    """Between sessions, the clock is set: what was written bears dates of another time, and none in order."""
    whole = apart(session, folder, str(folder / "whole"), STEPS, 0).result()
    run_dir = folder / "run"
    apart(session, folder, str(run_dir), 4, 0).result()
    for number, path in enumerate(sorted(run_dir.rglob("*"))):
        moment = path.stat().st_mtime - days * DAY - 60 * number
        os.utime(path, (moment, moment))
    seen = apart(session, folder, str(run_dir), STEPS, days).result()
    facts = {
        "another checkpoint": seen["restored"] is not None and seen["restored"][0] == 4,
        "another result": seen["last"] == whole["last"],
        "other rows": [row["train/loss"] for row in seen["rows"]] == [row["train/loss"] for row in whole["rows"]],
        f"an error {seen['error']}": seen["error"] is None,
    }
    wrong = [what for what, holds in facts.items() if not holds]
    return Outcome(not wrong, "; ".join(wrong), {"right": not wrong, "tried": 1})


def trials(quick: bool) -> list[Trial]:
    """Fields, second processes and clocks."""
    if quick:
        return [Trial("quick", lambda folder: settings(refused, folder, stride=7))]
    return [
        Trial("fields-refused", lambda folder: settings(refused, folder)),
        Trial("fields-accepted", lambda folder: settings(accepted, folder)),
        Trial("second-run", lambda folder: second_run(folder, link=False)),
        Trial("second-run-by-link", lambda folder: second_run(folder, link=True)),
        *(Trial(f"at-once-{i}", at_once) for i in range(3)),
        *(Trial(f"clock{days:+d}-days", lambda folder, days=days: clock(folder, days)) for days in (-400, -1, 400)),
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts fields, processes and clocks."""
    right, tried = (sum(int(o.figures.get(name, 0)) for o in outcomes) for name in ("right", "tried"))
    return f"refused or right {right}/{tried}"


FAULT = Fault("changed", "changed config on resume; two runs on one directory; clock set back", trials, summary)
