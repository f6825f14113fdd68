"""Command lines that nobody would write, drawn by hypothesis from the flags of a command and from what is no flag."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from hypothesis import strategies as st

from umd_eqx.commands.evaluate import EvaluateCommand
from umd_eqx.commands.finetune import Finetune
from umd_eqx.commands.leaves import KINDS
from umd_eqx.commands.linear_probe import LinearProbeCommand
from umd_eqx.commands.sample import Sample
from umd_eqx.commands.training import Command
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.linear_probe import LINEAR_PROBES
from umd_eqx.recipes.pretrain import PRETRAIN

INTEGERS = ("0", "1", "2", "3", "7", "8", "16", "64", "1000", "-1", "-8", str(2**31 - 1), str(2**31), str(2**63))
ODD_INTEGERS = (str(10**30), "1e3", "0x10", "1_000", "+4", "08", "٣", "1.5", "9" * 5000)
FLOATS = ("0", "0.1", "0.25", "0.5", "0.75", "1", "1e-3", "1e-8", "2", "10", "-0.5", "-0.0", "-1")
ODD_FLOATS = ("nan", "inf", "-inf", "1e308", "-1e308", "1e400", "5e-324", "1e-40", "1e9", "1e10", "0,5", "½", "1e", ".")
TEXTS = ("", " ", "None", "True", "-", "--", ".", "..", "~", "*", "train", "train[:10%]", "train[5:5]", "test[-1:]")
ODD_TEXTS = (
    *("a\nb", "\x1b[31m", "ünï", "日本", "\udc80\udcff", "\u202e", "🦊", "a b", "'\"", "%s", "{x}", "$HOME", "$(id)"),
    *("/dev/null", "/dev/zero", "/etc/passwd", "/proc/self/mem", "missing/run", "gs://bucket/x", "http://[", "x" * 300),
    *("/".join(["y" * 100] * 60), "train[", "train[::]", "train[:1e9%]", "mu/28", "B/0", "B/-4", "Ti/x", "nano/999999"),
    *("localhost:80", "localhost:0", "localhost:" + "9" * 5000, ":", "auto"),
)


class Flag(typing.NamedTuple):
    """A flag, without its dashes, the declared type of its value, and its default."""

    name: str
    type: Any
    default: Any = None


def flags_of(value: Any, prefix: str = "") -> Iterator[Flag]:
    """Yields the flags of a configuration, with the dotted names that its dataclasses give them."""
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        hint, member = hints[field.name], getattr(value, field.name)
        marks = getattr(hint, "__metadata__", ())
        given = next((mark.name for mark in marks if isinstance(getattr(mark, "name", None), str)), field.name)
        flag = ".".join(part for part in (prefix, given.replace("_", "-")) if part)
        chosen = f"{prefix}.{field.name}".strip(".") if given == "" else flag
        if dataclasses.is_dataclass(member):
            names = next((KINDS[kind] for kind in _kinds(hint) if kind in KINDS), {})
            if names:
                yield Flag(chosen, Literal[tuple(names)])
            yield from flags_of(member, flag)
        elif isinstance(member, Mapping):
            for name, item in member.items():
                yield from flags_of(item, f"{flag}.{name}")
        else:
            yield Flag(flag, hint, member)


def _kinds(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Annotated:
        return _kinds(typing.get_args(hint)[0])
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def values(hint: Any, default: Any = None) -> st.SearchStrategy[str]:
    """Words for a value: mostly of the declared type and near its default, and some that are odd."""
    kinds = _kinds(hint)
    usual: list[st.SearchStrategy[str]] = []
    if isinstance(default, int | float) and not isinstance(default, bool):
        kind = type(default)
        usual += [st.sampled_from([str(kind(default * times)) for times in (0.5, 1, 1, 2, 4)])] * 4
    elif isinstance(default, str):
        usual += [st.just(default)] * 2
    for kind in kinds:
        if kind is int:
            usual += [st.sampled_from(INTEGERS), st.integers(-(2**70), 2**70).map(str)]
        elif kind is float:
            usual += [st.sampled_from(FLOATS), st.floats().map(repr), st.floats(0, 1).map(repr)]
        elif kind is str:
            usual += [st.sampled_from(TEXTS)]
        elif kind is bool:
            usual += [st.sampled_from(("True", "False", "None"))]
        elif kind is types.NoneType:
            usual += [st.just("None")]
        elif typing.get_origin(kind) is Literal:
            usual += [st.sampled_from([str(name) for name in typing.get_args(kind)])] * 3
    # Words of an operating system have no NUL.
    text = st.text(st.characters(exclude_characters="\0"), max_size=12)
    odd = st.sampled_from(ODD_INTEGERS + ODD_FLOATS + TEXTS + ODD_TEXTS) | text
    return st.one_of(*usual * 4, odd) if usual else odd


def _misspelt(name: str) -> st.SearchStrategy[str]:
    where = st.integers(0, max(0, len(name) - 1))
    return st.one_of(
        where.map(lambda i: name[:i] + name[i + 1 :]),
        where.map(lambda i: name[:i] + name[i : i + 1] * 2 + name[i + 1 :]),
        st.sampled_from((name.upper(), name.replace("-", "_"), f"{name}.x", f"no-{name}", name.replace(".", ".."))),
    )


@st.composite
def flag_words(draw: st.DrawFn, flags: Sequence[Flag]) -> list[str]:
    """One flag with its value; rarely misspelt, without a value, or nothing of the kind."""
    flag = draw(st.sampled_from(flags))
    how = draw(st.integers(0, 39))
    if how == 0:
        return [f"--{draw(_misspelt(flag.name))}", draw(values(flag.type, flag.default))]
    if how == 1:
        return [f"--{flag.name}"]
    if how == 2:
        return [draw(st.sampled_from(ODD_TEXTS + TEXTS))]
    if how == 3:
        return [f"--{draw(st.text(st.characters(codec='utf-8', exclude_characters=chr(0)), max_size=8))}"]
    if bool in _kinds(flag.type) and how < 30:
        *groups, name = flag.name.split(".")
        return [f"--{'.'.join([*groups, draw(st.sampled_from((name, f'no-{name}')))])}"]
    if typing.get_origin(flag.type) is tuple or "tuple" in str(flag.type):
        element = next((kind for kind in (int, float) if kind.__name__ in str(flag.type)), str)
        return [f"--{flag.name}", *draw(st.lists(values(element), max_size=3))]
    value = draw(values(flag.type, flag.default))
    return [f"--{flag.name}={value}"] if how < 10 else [f"--{flag.name}", value]


@st.composite
def command_lines(draw: st.DrawFn, weights: str) -> list[str]:
    """The words after `experiments/pretrain.py`: of pre-training in two of three, else of another command.

    `weights` is an export that the other commands may start from.
    """
    command = draw(st.sampled_from(("", "", "", "", "", "", "finetune", "linear-probe", "sample", "evaluate")))
    presets = {"": PRETRAIN, "finetune": FINETUNE, "linear-probe": LINEAR_PROBES}.get(command, {})
    words = [command] if command else []
    if presets:
        name = draw(st.sampled_from(tuple(presets)))
        config = presets[name]()
        kind = {"": Command, "finetune": Finetune, "linear-probe": LinearProbeCommand}[command]
        flags = list(flags_of(kind(config)))
        words += draw(st.sampled_from(([name],) * 8 + ([], [name[1:]], ["--dry-run", name])))
    else:
        flags = list(flags_of(Sample() if command == "sample" else EvaluateCommand()))
    source = {"finetune": "--from", "linear-probe": "--run"}.get(command)
    if source and draw(st.integers(0, 7)):
        words += [source, weights]
    for _ in range(draw(st.integers(0, 4))):
        words += draw(flag_words(flags))
    if draw(st.integers(0, 9)) == 0:
        words += draw(st.sampled_from((["--dry-run"], ["--print-config"], ["--help"])))
    return words
