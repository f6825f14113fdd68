"""Selects parts of a configuration by name: `--sampler heun` replaces the default sampler by one of another type.

Names are resolved before tyro parses the arguments, so the flags of the selected type are available and listed by
`--help`. A part is selectable if the declared type of its field is one of the abstract bases in `KINDS`; supporting a
new base takes one entry there.
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
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.objectives import AbstractObjective
from umd_eqx.recipes.dump import default_of
from umd_eqx.sampling import GRIDS, SAMPLERS, AbstractGrid, AbstractSampler
from umd_eqx.training.optim import AbstractOptimiser
from umd_eqx.training.optimisers import OPTIMISERS

T = TypeVar("T")

Names = Mapping[str, Callable[..., Any]]
"""Types by name; a `functools.partial` is a type with some field values fixed."""

Kinds = Mapping[type, Names]
"""For each abstract base, the types that a field declared with that base accepts."""

KINDS: Kinds = {
    AbstractOptimiser: OPTIMISERS,
    AbstractSampler: SAMPLERS,
    AbstractGrid: GRIDS,
    AbstractSource: SOURCES,
    # The package's own types are set by presets; only user-defined types are selected by name.
    **{kind: {} for kind in (AbstractModelConfig, AbstractObjective, AbstractPath, AbstractEvaluator)},
}
"""The types that can be selected by name."""


class Choice(NamedTuple):
    """A selectable part: its flag, the available names, the prefix of its fields' flags, and its current value."""

    flag: str
    names: Names
    prefix: str
    value: Any


def with_types(kinds: Kinds, own: Mapping[str, type]) -> Kinds:
    """Returns the kinds extended by user-defined types, each added under its abstract base.

    A type without such a base cannot be selected by a flag. It can still be part of other types, and is recognised when
    these are loaded.

    **Raises:** `BadInput` if a type is not a dataclass or its name is already taken.
    """
    for name, cls in own.items():
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise BadInput("types", f"{name!r} is not a dataclass", "Give a frozen dataclass or an equinox.Module")
        for kind, names in kinds.items():
            if issubclass(cls, kind) and name in names:
                problem = f"the name {name!r} is already used for {type_of(names[name]).__name__}"
                raise BadInput("types", problem, "Choose another name")
    return {
        kind: {**names, **{name: cls for name, cls in own.items() if issubclass(cls, kind)}}
        for kind, names in kinds.items()
    }


def choose(default: T, words: Sequence[str], kinds: Kinds) -> tuple[T, list[str], list[Choice]]:
    """Replaces the parts of `default` that are named on the command line.

    Fields that both types have keep their values. A selectable part of a replaced part, such as the grid of a sampler,
    is kept only if it differs from the default of the old type; otherwise it takes the default of the new type.

    **Arguments:**

    - `default`: a configuration made of dataclasses and dictionaries.
    - `words`: the command-line arguments. `--FLAG NAME`, `--FLAG=NAME` and `--FLAG.name NAME` select a type, where FLAG
        is the dotted name of the field; the last occurrence wins.
    - `kinds`: the types that can be selected.

    **Returns:** the updated default, the remaining arguments, and all selectable parts.

    **Raises:** `BadInput` for an unknown name, with the closest match as a hint.
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
            flag = _join_flag(prefix, _flag_component(name, hint))
            if isinstance(old, Mapping):
                kind = _value_type(hint)
                new = {
                    key: member(item, kind, _join_flag(flag, key), _join_flag(flag, key)) for key, item in old.items()
                }
            else:
                new = member(old, _declared_type(hint), _join_flag(prefix, name) if flag == prefix else flag, flag)
            if new is not old and new != old:
                changes[name] = new
        return dataclasses.replace(value, **changes) if changes else value

    def member(value: Any, kind: Any, flag: str, prefix: str) -> Any:
        names = {
            name: make for name, make in kinds.get(kind, {}).items() if isinstance(kind, type) and value is not None
        }
        if names:
            for name in _pop_names(rest, flag):
                value = _replaced(value, _require_name(name, names, flag), flag, kinds, names)
            choices.append(Choice(flag, names, prefix, value))
            at = len(choices) - 1
            value = visit(value, prefix)
            choices[at] = choices[at]._replace(value=value)
            return value
        return visit(value, prefix)

    return visit(default, ""), rest, choices


def parse(command: type[T], words: Sequence[str], kinds: Kinds, *, default: T, description: str) -> T:
    """`tyro.cli` for a command whose parts can be selected by name. `--help` lists the flags of the selected types.

    **Arguments:**

    - `command`: a dataclass.
    - `default`: an instance of `command`, with a value for each selectable part.

    **Raises:** `BadInput` as `choose` does, and for a flag that exists only for a type that was not selected.
    """
    default, rest, choices = choose(default, words, kinds)
    fields: list[tuple[str, Any]] = [("command", Annotated[command, tyro.conf.arg(name="")])]
    current: dict[str, Any] = {"command": default}
    for i, choice in enumerate(choices):
        name = name_of(choice.value, choice.names)
        names = Literal[tuple(dict.fromkeys([*choice.names, name]))]  # pyright: ignore[reportInvalidTypeForm]
        about = tyro.conf.arg(name=choice.flag, metavar="NAME", help=_help_text(choice))
        fields.append((f"choice_{i}", Annotated[names, about]))
        current[f"choice_{i}"] = name
    words_of = dataclasses.make_dataclass("Words", fields, frozen=True)
    run = functools.partial(tyro.cli, words_of, args=rest, default=words_of(**current), description=description)
    foreign = _unavailable_flag(rest, choices)
    if foreign is not None:
        try:  # the command itself may have a flag of that name
            return run(console_outputs=False).command
        except SystemExit as end:
            if end.code:
                raise foreign from None
    return run().command


def name_of(value: Any, names: Names) -> str:
    """The name of a part, or the name of its class if it has none."""
    same = [name for name, make in names.items() if type_of(make) is type(value)]
    exact = [name for name in same if all(getattr(value, key) == x for key, x in _fixed_fields(names[name]).items())]
    return next(iter([*exact, *same]), type(value).__name__)


def type_of(make: Callable[..., Any]) -> type:
    """The class that a named entry constructs."""
    return make.func if isinstance(make, functools.partial) else make  # pyright: ignore[reportReturnType]


def _replaced(old: Any, name: str, flag: str, kinds: Kinds, names: Names) -> Any:
    if name_of(old, names) == name:
        return old
    make = names[name]
    before = {field.name: field for field in dataclasses.fields(old)}
    hints = typing.get_type_hints(type_of(make), include_extras=True)
    kept = {}
    for field in dataclasses.fields(type_of(make)):
        if not field.init or field.name not in before or field.name in _fixed_fields(make):
            continue
        value = getattr(old, field.name)
        if not (_declared_type(hints[field.name]) in kinds and value == default_of(before[field.name])):
            kept[field.name] = value
    given = {*kept, *_fixed_fields(make)}
    missing = [
        f.name for f in dataclasses.fields(type_of(make)) if f.init and f.name not in given and not _has_default(f)
    ]
    if missing:
        problem = f"{name} needs {', '.join(missing)}, which {name_of(old, names)} does not have"
        raise BadInput(flag, problem, "Give these fields a default, or set the part in a preset")
    return make(**kept)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _fixed_fields(make: Callable[..., Any]) -> Mapping[str, Any]:
    return make.keywords if isinstance(make, functools.partial) else {}


def _pop_names(words: list[str], flag: str) -> list[str]:
    """Removes the occurrences of a flag from the arguments, and returns the names given to it."""
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


def _require_name(name: str, names: Names, flag: str) -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    problem = "a name is missing" if not name or name.startswith("-") else f"there is no {name!r}"
    raise BadInput(flag, problem, f"{hint}Choose one of: {', '.join(names)}")


def _unavailable_flag(words: Sequence[str], choices: Sequence[Choice]) -> BadInput | None:
    """The error for the first argument that is a flag of a type which was not selected; None if there is none."""
    for word in words:
        word = word.partition("=")[0].replace("_", "-").replace("--no-", "--").replace(".no-", ".")
        for choice in choices:
            has = {
                name: [f"--{_join_flag(choice.prefix, field.name)}" for field in dataclasses.fields(type_of(make))]
                for name, make in choice.names.items()
            }
            chosen = name_of(choice.value, choice.names)
            owners = [
                name for name, flags in has.items() if any(_is_flag_or_subflag(word, f"{flag}") for flag in flags)
            ]
            if owners and chosen in choice.names and chosen not in owners:
                problem = f"{chosen} has no such setting"
                hint = f"Omit it, or choose a type that has it: `{choice.flag}={owners[0]}`"
                return BadInput(word.removeprefix("--").replace("-", "_"), problem, hint)
    return None


def _is_flag_or_subflag(word: str, flag: str) -> bool:
    return f"{word}.".startswith(f"{flag.replace('_', '-')}.")


def _help_text(choice: Choice) -> str:
    return f"One of {', '.join(choice.names)}. --help lists the flags of the selected one."


def _join_flag(prefix: str, name: str) -> str:
    return ".".join(part for part in (prefix, name.replace("_", "-")) if part)


def _flag_component(name: str, hint: Any) -> str:
    """The component of a flag for a field; empty if the field is flattened (`tyro.conf.arg(name="")`)."""
    given = [getattr(mark, "name", None) for mark in getattr(hint, "__metadata__", ())]
    return next((it for it in given if isinstance(it, str)), name)


def _declared_type(hint: Any) -> Any:
    """A type without its annotations; for a union with None, the other member."""
    if typing.get_origin(hint) is Annotated:
        return _declared_type(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        others = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return others[0] if len(others) == 1 else None
    return hint if isinstance(hint, type) else None


def _value_type(hint: Any) -> Any:
    """The type of a dictionary's values."""
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return _declared_type((typing.get_args(hint) or (None,))[-1])
