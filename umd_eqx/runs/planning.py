"""What a run would need on other devices, from compiling its programs for them: memory, communication and time."""

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
from jax.errors import JaxRuntimeError

from umd_eqx.core.errors import BadInput
from umd_eqx.core.hlo import KINDS, traffic
from umd_eqx.core.programs import Memory, Program, is_shape
from umd_eqx.core.sharding import ShardingConfig, make_mesh
from umd_eqx.core.types import DataSpec
from umd_eqx.eval import Generation
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.recipes.build import Built, build
from umd_eqx.recipes.config import Config
from umd_eqx.runs.memory import STEP, programs, step_program
from umd_eqx.runs.targets import Target
from umd_eqx.training.flops import product_flops
from umd_eqx.training.prediction import predict

STRATEGIES = ("dp", "fsdp", "tp", "fsdpxtp")
"""The strategies that are compared by default, and `dpxfsdp8` on more than 8 devices."""

DEFAULT_TENSOR = 2
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Row:
    """One program compiled for one division over the devices. All bytes are those of one device.

    - `target`, `strategy`, `data`, `fsdp`, `tensor`, `devices`: the devices, and how they are divided.
    - `part`, `program`: what is compiled: `step` and `update` for the training step.
    - `memory_bytes`: arguments, temporaries and outputs; as reported by the compiler if it ran out of memory.
    - `fits`: whether that is available.
    - `argument_bytes`: the state and the batch. None where the compiler ran out of memory, as all below but `flops`.
    - `parameter_bytes`: the size of all parameters of the network.
    - `collective_bytes`: the arrays that are gathered, reduced or exchanged over devices in one call.
    - `collectives`: the same for each kind of collective and dtype, such as `all-gather f32`.
    - `flops`: the model FLOPs of one step over all devices. For other programs those of their products, and None if
        they are unknown.
    - `predicted_ms`, `predicted_mfu`, `limit`: the time of one call, the utilisation of the peak for bfloat16, and what
        takes the longest (`umd_eqx.training.prediction`). None if the number of iterations of a loop is unknown.
    - `compile_seconds`: how long it took to compile.
    """

    target: str
    strategy: str
    data: int
    fsdp: int
    tensor: int
    devices: int
    part: str
    program: str
    memory_bytes: int
    fits: bool
    parameter_bytes: int
    flops: int | None
    compile_seconds: float
    argument_bytes: int | None = None
    collective_bytes: int | None = None
    collectives: dict[str, int] | None = None
    predicted_ms: float | None = None
    predicted_mfu: float | None = None
    limit: str | None = None


def strategy_axes(strategy: str, devices: int) -> ShardingConfig:
    """Returns the axes of a strategy: a product of `dp`, `fsdp` and `tp`, such as `dp4xfsdp8xtp2`.

    A number is that of the devices on an axis. `tp` without one is 2; `fsdp` is all devices that are left, unless the
    strategy has `dp` without a number, which then is.

    **Raises:** `BadInput` naming `strategy` if it is not valid, or does not fit the number of devices.
    """
    factors = [re.fullmatch(r"(dp|fsdp|tp)(\d{0,6})", word) for word in strategy.lower().split("x")]
    sizes = {match[1]: int(match[2] or 0) for match in factors if match is not None}
    if len(sizes) < len(factors) or any(match and match[2] and not int(match[2]) for match in factors):
        problem = f"{strategy!r} is not a strategy"
        raise BadInput("strategy", problem, "Use dp, fsdp, tp or a product, such as fsdpxtp2 or dp4xfsdp8")
    if sizes.get("fsdp") == sizes.get("dp") == 0:
        raise BadInput("strategy", f"{strategy!r} leaves two sizes open", "Give one, such as dpxfsdp8")
    tensor = (sizes["tp"] or DEFAULT_TENSOR) if "tp" in sizes else 1
    data, fsdp = sizes.get("dp"), sizes.get("fsdp", 1)
    given = tensor * (data or 1) * (fsdp or 1)
    open_ended = fsdp == 0 or not data
    if devices % given or (not open_ended and devices != given):
        problem = f"{strategy} does not divide {devices} devices"
        raise BadInput("strategy", problem, f"Use numbers whose product is {devices}, or leave one out")
    left = devices // given
    return ShardingConfig(data or 1, left, tensor) if fsdp == 0 else ShardingConfig(data or left, fsdp, tensor)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A program of a run, on the devices of a strategy."""

    strategy: str
    built: Built
    part: str
    name: str
    program: Program


def pieces(
    config: Config,
    spec: DataSpec,
    target: Target,
    strategies: Sequence[str] | None = None,
    parts: Literal["step", "all"] = "step",
    tokenizer: AbstractTokenizer | None = None,
) -> tuple[list[Piece], list[str]]:
    """Returns the programs to compile, and notes on strategies of the default set that do not suit the network.

    **Arguments:**

    - `config`, `spec`: the run, with its references resolved, and the description of its data.
    - `target`: the devices.
    - `strategies`: as in `strategy_axes`. None: `STRATEGIES`, or the division in `config.sharding` if it has one.
    - `parts`: the training step, or also the encoding of images, the evaluators and the sampler.
    - `tokenizer`: that of the configuration if it is loaded already.

    **Raises:** `BadInput` naming the field of an invalid value.
    """
    found, notes, count = [], [], len(target.devices)
    own = config.sharding != ShardingConfig() and not strategies
    chosen = list(dict.fromkeys(strategies or (("sharding",) if own else _usual(count))))
    for strategy in chosen:
        try:
            axes = config.sharding if own else strategy_axes(strategy, count)
            divided = dataclasses.replace(_sampled(config, parts), sharding=axes)
            built = build(divided, spec, make_mesh(target.devices, axes))
            some = {STEP: {"update": step_program(built)}} if parts == "step" else programs(built, tokenizer)
        except BadInput as error:
            if strategies or own or error.field not in ("strategy", "sharding.tensor", "sharding.fsdp"):
                raise
            notes.append(f"{strategy} is left out: {error.problem}")
            continue
        found += [Piece(strategy, built, part, name, one) for part, all_ in some.items() for name, one in all_.items()]
    return found, notes


def compiled(piece: Piece, target: Target) -> Row:
    """Compiles a program for the devices of a target and returns what it needs. Nothing is run.

    Memory that the compiler does not find is not an error: the row then has `fits=False`. Raises `BadInput` naming
    `target` if the compiler fails otherwise.
    """
    began, built = time.monotonic(), piece.built
    computed = _products(piece.program)
    flops = built.step_flops() if piece.part == STEP else computed
    shape, model = built.parts.mesh.shape, built.abstract_state().model
    row = Row(
        target=target.name,
        strategy=piece.strategy,
        data=shape["data"],
        fsdp=shape["fsdp"],
        tensor=shape["tensor"],
        devices=built.parts.mesh.size,
        part=piece.part,
        program=piece.name,
        memory_bytes=0,
        fits=False,
        parameter_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model) if is_shape(leaf)),
        flops=flops,
        compile_seconds=0.0,
    )
    try:
        done = piece.program.lower().compile(compiler_options=target.options or None)
    except JaxRuntimeError as error:
        used = memory_exceeded(str(error))
        if used is None:
            reason = (str(error).strip() or "without a reason").splitlines()[0]
            problem = f"the compiler for {target.name} failed on {piece.part} {piece.name} ({reason})"
            raise BadInput("target", problem, "Use another target or strategy") from error
        return dataclasses.replace(row, memory_bytes=used, compile_seconds=round(time.monotonic() - began, 1))
    analysis: Any = done.memory_analysis()
    kept = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = Memory(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes, kept)
    moved = traffic(done.as_text() or "")
    row = dataclasses.replace(
        row,
        memory_bytes=memory.total,
        argument_bytes=memory.arguments,
        fits=memory.total <= target.memory,
        collective_bytes=moved.bytes(),
        collectives=_by_kind(moved.collectives),
        compile_seconds=round(time.monotonic() - began, 1),
    )
    if computed is None or not moved.exact:
        return row
    float32 = built.config.model.precision == "float32"
    found = predict(target.chip, computed / row.devices, moved, float32=float32, hosts=target.hosts)
    mfu = (flops or 0) / (found.seconds * target.chip.peak * row.devices)
    return dataclasses.replace(row, predicted_ms=found.seconds * 1e3, predicted_mfu=mfu, limit=found.limit)


def memory_exceeded(message: str) -> int | None:
    """Returns the bytes that a program needs, from a compiler's message that it ran out of memory; None for others."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of", message)
    if used is not None:
        return int(float(used[1]) * _UNITS[used[2]])
    wanted = re.search(r"allocate (\d+) ?bytes", message)
    return int(wanted[1]) if wanted else None


def _usual(devices: int) -> Iterator[str]:
    yield from (STRATEGIES if devices > 1 else ("dp",))
    if devices > 8:
        yield "dpxfsdp8"


def _sampled(config: Config, parts: str) -> Config:
    """Returns the configuration with a sampler if it has none and is trained to denoise."""
    sampled = any(isinstance(evaluator, Generation) for evaluator in config.eval.values())
    if parts == "step" or sampled or not config.objective.denoises:
        return config
    return dataclasses.replace(config, eval=config.eval | {"generation": Generation(every=1)})


def _products(program: Program) -> int | None:
    try:
        return product_flops(program.function, *program.arguments)
    except ValueError:  # a loop of unknown length
        return None


def _by_kind(collectives: Sequence[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in sorted(collectives, key=lambda one: KINDS.index(one.kind)):
        name = f"{one.kind} {one.dtype}"
        found[name] = found.get(name, 0) + one.total
    return found
