"""Parts of a configuration that are chosen by name: `--sampler heun` puts another type in the place of the default's.

This happens before tyro reads the words, so that the flags of the chosen type are there, and are shown by `--help`. A
part that can be chosen is a field whose declared type is one of the abstract bases in `KINDS`; a new base is one entry.
"""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.data.source_configs import SOURCES, AbstractSource
from umd_eqx.eval import AbstractEvaluator
from umd_eqx.models.vit.variants import AbstractModelConfig
from umd_eqx.objectives import AbstractObjective
from umd_eqx.recipes.dump import default_of
from umd_eqx.sampling import GRIDS, SAMPLERS, AbstractGrid, AbstractSampler
from umd_eqx.training.optim import AbstractOptimiser
from umd_eqx.training.optimisers import OPTIMISERS

T = TypeVar("T")

Names = Mapping[str, Callable[..., Any]]
"""Types by name, or types with some values fixed (`functools.partial`)."""

Kinds = Mapping[type, Names]
"""By abstract base, what a field that is declared as one can be."""

KINDS: Kinds = {
    AbstractOptimiser: OPTIMISERS,
    AbstractSampler: SAMPLERS,
    AbstractGrid: GRIDS,
    AbstractSource: SOURCES,
    # The presets choose among those of the package; a reader's own are chosen by name.
    **{kind: {} for kind in (AbstractModelConfig, AbstractObjective, AbstractPath, AbstractEvaluator)},
}
"""What can be chosen by name."""


class Choice(NamedTuple):
    """A part that can be chosen: its flag, its names, the flag that its own fields begin with, and what it is now."""

    flag: str
    names: Names
    prefix: str
    value: Any


def with_types(kinds: Kinds, own: Mapping[str, type]) -> Kinds:
    """The kinds with a reader's own types, each with those whose abstract base it has.

    A type of another base can be named by no flag; it is then only part of others, and is known when they are loaded.

    **Raises:** `BadInput` for what is not a dataclass, and for a name that is taken.
    """
    for name, cls in own.items():
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise BadInput("types", f"{name!r} is not a dataclass", "Give a frozen dataclass or an equinox.Module")
        for kind, names in kinds.items():
            if issubclass(cls, kind) and name in names:
                problem = f"{name!r} is the name of {type_of(names[name]).__name__} already"
                raise BadInput("types", problem, "Choose another name")
    return {
        kind: {**names, **{name: cls for name, cls in own.items() if issubclass(cls, kind)}}
        for kind, names in kinds.items()
    }


def choose(default: T, words: Sequence[str], kinds: Kinds) -> tuple[T, list[str], list[Choice]]:
    """Puts what the words name in the place of the default's parts.

    A field that both types have is kept. A part of a part, such as the grid of a sampler, is kept if it is not what the
    old type has by default: else it is what the new type has by default.

    **Arguments:**

    - `default`: a configuration, of dataclasses and dictionaries.
    - `words`: of a command line. `--FLAG NAME`, `--FLAG=NAME` and `--FLAG.name NAME` choose, FLAG being the dotted name
        of the field; the last of several counts.
    - `kinds`: what can be chosen.

    **Returns:** the changed default, the words that are left, and all parts that could have been chosen.

    **Raises:** `BadInput` for a name that does not exist, with the nearest that does.
    """
    rest, choices = list(words), []

    def visit(value: Any, prefix: str) -> Any:
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        hints = typing.get_type_hints(type(value), include_extras=True)
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        changes = {}
        for name in fields:
            old, hint = getattr(value, name), hints[name]
            flag = _joined(prefix, _named(name, hint))
            if isinstance(old, Mapping):
                kind = _mapped(hint)
                new = {key: member(item, kind, _joined(flag, key), _joined(flag, key)) for key, item in old.items()}
            else:
                new = member(old, _declared(hint), _joined(prefix, name) if flag == prefix else flag, flag)
            if new is not old and new != old:
                changes[name] = new
        return dataclasses.replace(value, **changes) if changes else value

    def member(value: Any, kind: Any, flag: str, prefix: str) -> Any:
        names = {
            name: make for name, make in kinds.get(kind, {}).items() if isinstance(kind, type) and value is not None
        }
        if names:
            for name in _taken(rest, flag):
                value = _swapped(value, _known(name, names, flag), flag, kinds, names)
            choices.append(Choice(flag, names, prefix, value))
            at = len(choices) - 1
            value = visit(value, prefix)
            choices[at] = choices[at]._replace(value=value)
            return value
        return visit(value, prefix)

    return visit(default, ""), rest, choices


def parse(command: type[T], words: Sequence[str], kinds: Kinds, *, default: T, description: str) -> T:
    """`tyro.cli` for a command whose parts can be chosen by name. `--help` shows the flags of what was chosen.

    **Arguments:**

    - `command`: a dataclass.
    - `default`: one of it, with a value for each part that can be chosen.

    **Raises:** `BadInput` as `choose` does, and for a flag that only a type has which was not chosen.
    """
    default, rest, choices = choose(default, words, kinds)
    fields: list[tuple[str, Any]] = [("command", Annotated[command, tyro.conf.arg(name="")])]
    current: dict[str, Any] = {"command": default}
    for i, choice in enumerate(choices):
        name = name_of(choice.value, choice.names)
        names = Literal[tuple(dict.fromkeys([*choice.names, name]))]  # pyright: ignore[reportInvalidTypeForm]
        about = tyro.conf.arg(name=choice.flag, metavar="NAME", help=_about(choice))
        fields.append((f"choice_{i}", Annotated[names, about]))
        current[f"choice_{i}"] = name
    words_of = dataclasses.make_dataclass("Words", fields, frozen=True)
    run = functools.partial(tyro.cli, words_of, args=rest, default=words_of(**current), description=description)
    foreign = _foreign(rest, choices)
    if foreign is not None:
        try:  # it may be a flag of the command all the same
            return run(console_outputs=False).command
        except SystemExit as end:
            if end.code:
                raise foreign from None
    return run().command


def name_of(value: Any, names: Names) -> str:
    """The name of a part; that of its class if it has none."""
    same = [name for name, make in names.items() if type_of(make) is type(value)]
    exact = [name for name in same if all(getattr(value, key) == x for key, x in _fixed(names[name]).items())]
    return next(iter([*exact, *same]), type(value).__name__)


def type_of(make: Callable[..., Any]) -> type:
    """The class of what a name stands for."""
    return make.func if isinstance(make, functools.partial) else make  # pyright: ignore[reportReturnType]


def _swapped(old: Any, name: str, flag: str, kinds: Kinds, names: Names) -> Any:
    if name_of(old, names) == name:
        return old
    make = names[name]
    before = {field.name: field for field in dataclasses.fields(old)}
    hints = typing.get_type_hints(type_of(make), include_extras=True)
    kept = {}
    for field in dataclasses.fields(type_of(make)):
        if not field.init or field.name not in before or field.name in _fixed(make):
            continue
        value = getattr(old, field.name)
        if not (_declared(hints[field.name]) in kinds and value == default_of(before[field.name])):
            kept[field.name] = value
    given = {*kept, *_fixed(make)}
    missing = [f.name for f in dataclasses.fields(type_of(make)) if f.init and f.name not in given and not _optional(f)]
    if missing:
        problem = f"{name} needs {', '.join(missing)}, which {name_of(old, names)} does not have"
        raise BadInput(f"--{flag}", problem, "Give these fields a default, or put it into a preset")
    return make(**kept)


def _optional(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _fixed(make: Callable[..., Any]) -> Mapping[str, Any]:
    return make.keywords if isinstance(make, functools.partial) else {}


def _taken(words: list[str], flag: str) -> list[str]:
    """The names that the words give a flag, which are removed from the words."""
    flags = (f"--{flag}", f"--{flag}.name")
    names, i = [], 0
    while i < len(words):
        word, equals, name = words[i].partition("=")
        if word.replace("_", "-") not in flags:
            i += 1
            continue
        names.append(name if equals else next(iter(words[i + 1 : i + 2]), ""))
        del words[i : i + (1 if equals else 2)]
    return names


def _known(name: str, names: Names, flag: str) -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    problem = "a name is missing" if not name or name.startswith("-") else f"there is no {name!r}"
    raise BadInput(f"--{flag}", problem, f"{hint}There are: {', '.join(names)}")


def _foreign(words: Sequence[str], choices: Sequence[Choice]) -> BadInput | None:
    """What is wrong with the first word that is a flag of a type which could have been chosen, and was not."""
    for word in words:
        word = word.partition("=")[0].replace("_", "-").replace("--no-", "--").replace(".no-", ".")
        for choice in choices:
            has = {
                name: [f"--{_joined(choice.prefix, field.name)}" for field in dataclasses.fields(type_of(make))]
                for name, make in choice.names.items()
            }
            chosen = name_of(choice.value, choice.names)
            owners = [name for name, flags in has.items() if any(_begins(word, f"{flag}") for flag in flags)]
            if owners and chosen in choice.names and chosen not in owners:
                problem = f"{chosen} has no such setting"
                return BadInput(word, problem, f"Leave it out, or take one that has: --{choice.flag} {owners[0]}")
    return None


def _begins(word: str, flag: str) -> bool:
    return f"{word}.".startswith(f"{flag.replace('_', '-')}.")


def _about(choice: Choice) -> str:
    return f"One of {', '.join(choice.names)}; its own flags are then here."


def _joined(prefix: str, name: str) -> str:
    return ".".join(part for part in (prefix, name.replace("_", "-")) if part)


def _named(name: str, hint: Any) -> str:
    """The part of a flag that a field is; empty where its fields are shown in its place (`tyro.conf.arg(name="")`)."""
    given = [getattr(mark, "name", None) for mark in getattr(hint, "__metadata__", ())]
    return next((it for it in given if isinstance(it, str)), name)


def _declared(hint: Any) -> Any:
    """A type without its annotations, and of a union with None the other."""
    if typing.get_origin(hint) is Annotated:
        return _declared(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        others = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return others[0] if len(others) == 1 else None
    return hint if isinstance(hint, type) else None


def _mapped(hint: Any) -> Any:
    """The type of a dictionary's values."""
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return _declared((typing.get_args(hint) or (None,))[-1])
