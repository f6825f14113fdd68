"""The collectives and the memory traffic of a compiled program, read from the text of its HLO.

The text is that of `jax.stages.Compiled.as_text()`: the program of one device, after partitioning. The bodies of loops
are counted as often as they run.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""The kinds of collectives."""

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota")
_FREE_SUFFIXES = ("-start", "-done", "partition-id", "replica-id", "after-all", "AllocateBuffer")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of one device.

    - `kind`: one of `KINDS`.
    - `dtype`: the dtype of its values, as HLO names it (`f32`, `bf16`).
    - `bytes`: the size of the whole array that is gathered, reduced or exchanged, in bytes.
    - `group`: the number of devices that take part.
    - `count`: how often it runs in one call of the program.
    """

    kind: str
    dtype: str
    bytes: int
    group: int
    count: int

    @property
    def total(self) -> int:
        """The bytes of all its runs."""
        return self.bytes * self.count

    @property
    def sent(self) -> float:
        """The bytes that each device sends in all its runs with ring algorithms (Patarasuk and Yuan 2009).

        Of the array, a gather and a scatter send (n - 1) / n in a group of n, and a reduction twice that.
        """
        if self.kind == "collective-permute":
            return float(self.total)
        share = (self.group - 1) / self.group
        if self.kind == "all-to-all":
            share /= self.group
        return self.total * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a program moves in one call, for each device.

    - `collectives`: those over more than one device.
    - `memory`: the bytes that are read from and written to its main memory, as if nothing stayed in caches.
    - `exact`: whether the number of iterations of every loop is known. The body of other loops is counted once.
    """

    collectives: tuple[Collective, ...]
    memory: int
    exact: bool

    def bytes(self, kind: str | None = None) -> int:
        """Returns the bytes of the collectives of one kind, or of all."""
        return sum(one.total for one in self.collectives if kind in (None, one.kind))


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    given: str
    attributes: str
    root: bool
    place: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.given)


class _Run(NamedTuple):
    """An instruction that runs: the types in its computation, how often, and in which loop's body.

    `known` is whether the number of iterations of all loops around it is known.
    """

    instruction: _Instruction
    types: Mapping[str, str]
    times: int
    known: bool
    region: str


Computations = Mapping[str, Sequence[_Instruction]]


def traffic(text: str) -> Traffic:
    """Returns the collectives and the memory traffic of the compiled program in `text`.

    Raises `ValueError` if the text is not that of an HLO module.
    """
    computations, entry = _parse(text)
    devices = re.search(r"num_partitions=(\d+)", text)
    found, seen, memory, exact = [], set(), 0, True
    for run in _executed(computations, entry):
        exact &= run.known
        collective = _collective(run, int(devices[1]) if devices else 1)
        # A TPU's compiler repeats a collective in each fusion that it advances with: all have the channel of the first.
        channel = re.search(r"channel_id=(\d+)", run.instruction.attributes)
        if collective is None or collective.group == 1 or (channel and (run.region, channel[1]) in seen):
            continue
        found.append(collective)
        if channel:
            seen.add((run.region, channel[1]))
    for run in _executed(computations, entry, inside=False):
        memory += run.times * _moved(run.instruction, run.types, computations)
    return Traffic(tuple(found), memory, exact)


def _parse(text: str) -> tuple[Computations, str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, place = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head and " = " not in line.split("(")[0]:
            place = head[2]
            computations[place] = []
            entry = place if head[1] else entry
        elif place is not None and " = " in line and (parsed := _instruction(line.strip(), place)) is not None:
            computations[place].append(parsed)
    if not entry:
        raise ValueError("the text is not that of an HLO module: it has no ENTRY")
    return computations, entry


def _instruction(line: str, place: str) -> _Instruction | None:
    root, line = line.startswith("ROOT "), line.removeprefix("ROOT ")
    name, _, rest = line.partition(" = ")
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    opcode, _, _ = rest[end:].strip().partition("(")
    if end < 1 or not re.fullmatch(r"[a-z][\w\-]*", opcode):
        return None
    called = rest[rest.index("(", end) :]
    closing = _closing(called)
    return _Instruction(name.lstrip("%"), rest[:end], opcode, called[:closing], called[closing:], root, place)


def _closing(text: str) -> int:
    """Returns the index behind the parenthesis that closes the one at the start."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index + 1
    return len(text)


def _executed(
    computations: Computations, name: str, around: _Run | None = None, *, inside: bool = True
) -> Iterator[_Run]:
    """Yields each instruction that runs. `around` is that which calls the computation, and how often it runs.

    `inside` also yields those inside fusions, which exchange nothing with the main memory.
    """
    count, known, region = (1, True, name) if around is None else around[2:]
    types = {one.name: one.type for one in computations.get(name, ())}
    for one in computations.get(name, ()):
        trips = _trips(one, computations) if one.opcode == "while" else 1
        yield _Run(one, types, count, known and trips is not None, region)
        if not inside and one.opcode not in ("while", "conditional", "call", "async-start"):
            continue
        branches = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        called = _CALLS.findall(one.attributes) + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])
        for each in called:
            place = each if one.opcode == "while" else region
            within = _Run(one, types, count * (trips or 1), known and trips is not None, place)
            yield from _executed(computations, each, within, inside=inside)


def _trips(loop: _Instruction, computations: Computations) -> int | None:
    """Returns the number of iterations: as stated, or from the condition of a loop that counts from zero by ones."""
    stated = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
    if stated:
        return int(stated[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    inside = [run.instruction for run in _executed(computations, condition[1])] if condition else []
    limits = [one for one in inside if one.opcode == "constant" and re.match(r"[su](32|64)\[\]", one.type)]
    compared = [one for one in inside if one.opcode == "compare" and "direction=LT" in one.attributes]
    others = [one for one in inside if one.opcode in ("and", "or", "not", "compare")]
    if len(limits) != 1 or len(compared) != 1 or len(others) != 1:
        return None
    return int(limits[0].given.strip("()"))


def _collective(run: _Run, devices: int) -> Collective | None:
    instruction = run.instruction
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    operands = [run.types.get(name, "") for name in instruction.operands]
    group, size = _group(instruction.attributes, devices), sum(map(_bytes, operands))
    if kind == "all-gather":
        size *= group
    if kind == "all-reduce" and instruction.place.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # fused on TPUs
    dtypes = [found[1] for text in operands if (found := _SHAPE.search(text))]
    return Collective(kind, dtypes[0] if dtypes else "", size, group, run.times)


def _group(attributes: str, devices: int) -> int:
    if "source_target_pairs=" in attributes:
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return int(iota[1].split(",")[-1])
    # The order of the devices in the mesh may follow its axes.
    if mesh := re.search(r"replica_groups=\w*\[([^\]]*)\](?:, device_ids=\([^{]*\))? ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes.get(axis, 1)) for axis, part in axes)
    return devices


def _moved(instruction: _Instruction, types: Mapping[str, str], computations: Computations) -> int:
    """Returns the bytes that an instruction outside of fusions reads and writes.

    Of an array of which a fusion only takes slices, or replaces a part in place, the slices or the part are counted.
    """
    opcode, operands = instruction.opcode, [types.get(name, "") for name in instruction.operands]
    if opcode in _FREE or opcode.endswith(_FREE_SUFFIXES) or "AllocateBuffer" in instruction.attributes:
        return 0
    read, written = sum(map(_bytes, map(_main, operands))), _bytes(_main(instruction.type))
    if opcode == "dynamic-slice":
        return 2 * written
    if opcode == "dynamic-update-slice":
        return 2 * _bytes(_main(operands[1]))
    if opcode != "fusion" or not (called := _CALLS.search(instruction.attributes)):
        return read + written
    body = computations.get(called[1], ())
    inner = {one.name: one for one in body}
    read = 0
    for parameter in (one for one in body if one.opcode == "parameter"):
        users = [one for one in body if parameter.name in one.operands]
        if any(user.opcode not in ("dynamic-slice", "dynamic-update-slice") for user in users):
            read += _bytes(_main(parameter.type))
            continue
        for user in users:
            if user.operands[0] != parameter.name:
                read += _bytes(_main(parameter.type))
            elif user.opcode == "dynamic-slice":  # what is replaced in place is not read
                read += _bytes(_main(user.type))
    for one in body:
        if one.opcode == "dynamic-update-slice" and one.operands[1] in inner and (one.root or _same(one, body)):
            part = _bytes(_main(inner[one.operands[1]].type.replace("S(1)", "")))
            written = min(written, part if _bytes(_main(one.type)) else 0)
    return read + written


def _same(update: _Instruction, body: Sequence[_Instruction]) -> bool:
    """Whether the result of a fusion is that of `update`, seen differently."""
    return any(one.root and one.opcode == "bitcast" and update.name in one.operands for one in body)


def _main(text: str) -> str:
    """Returns the shapes of a type that lie in the main memory: not those in a TPU's vector memory, `S(1)`."""
    return " ".join(found[0] for found in _SHAPE.finditer(text) if not re.search(r"S\(\d+\)", found[3] or ""))


def _bytes(text: str) -> int:
    """Returns the size of all arrays in a type."""
    total = 0
    for dtype, dimensions, _ in _SHAPE.findall(text):
        width = re.search(r"\d+", dtype)
        bits = 8 if dtype == "pred" else int(width[0]) if width else 0
        size = math.prod(int(number.strip("<=")) for number in dimensions.split(",") if number)
        total += -(-size * bits // 8)
    return total
