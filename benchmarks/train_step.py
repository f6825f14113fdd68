"""Time and memory of a training step, side by side in one run with a plain Flax rendering in the published setting.

    python benchmarks/train_step.py [--systems umd mae dit maskdit] [--steps 5] [--parts] [--json FILE]

Both sides start from the same weights, which must give the same loss on the same draws. Their steps are timed in turn
(ours, theirs, ours, ...), so that a machine whose speed drifts is fair to both; times are medians. The peak is measured
between them. Needs `pip install -e ".[bench]"`.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from umd_eqx import presets
from umd_eqx.config import Built, build
from umd_eqx.flops import measured_peak_flops
from umd_eqx.models import AutoEncoder, from_reference
from umd_eqx.models.stack import Remat
from umd_eqx.objectives import Draw
from umd_eqx.train import TrainState, compile_step, loss_and_grads
from umd_eqx.types import Batch

try:
    import flax_baseline
except ModuleNotFoundError as error:
    print(f'error: {error}. The other side needs an extra: pip install -e ".[bench]"', file=sys.stderr)
    sys.exit(2)

System = Literal["umd", "mae", "dit", "maskdit"]
SAME_LOSS = 1e-5


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    systems: Annotated[tuple[System, ...], tyro.conf.arg(aliases=["-s"])] = ("umd", "mae", "dit", "maskdit")
    """Which systems."""
    variant: Literal["S", "B", "L"] = "B"
    """Size of the network, at patch 4."""
    size: int = 64
    """Side of the images in pixels."""
    batch: int = 8
    """Images a step."""
    steps: int = 5
    """Timed steps of each side, after one that is not."""
    remat: Remat = "dots"
    """What our backward pass recomputes."""
    scan: bool = True
    """Scan our layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What our tokens are computed in; the other side is float32, as published."""
    parts: bool = False
    """Also time our forward pass and our gradient alone."""
    json: Path | None = None
    """Write the rows there."""


@dataclasses.dataclass
class Side:
    """One implementation: a step to call, and what the compiler said of it."""

    step: Callable[[], Any]
    compile_s: float
    temp_bytes: int
    peak_bytes: int
    times: list[float] = dataclasses.field(default_factory=list)

    def time_once(self) -> None:
        """Runs a step and keeps its time."""
        start = time.perf_counter()
        jax.block_until_ready(self.step())
        self.times.append(time.perf_counter() - start)

    @property
    def ms(self) -> float:
        """The median, without the first step."""
        return 1e3 * statistics.median(self.times[1:])


def compiled_side(compile_: Callable[[], Any], step_of: Callable[[Any], Callable[[], Any]]) -> Side:
    """Compiles, and reads the memory off the result: temporaries, and all that is alive at once."""
    start = time.perf_counter()
    compiled = compile_()
    seconds = time.perf_counter() - start
    memory = getattr(compiled, "compiled", compiled).memory_analysis()
    alive = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Side(step_of(compiled), seconds, memory.temp_size_in_bytes, memory.temp_size_in_bytes + alive)


def ours(options: Options, built: Built, model: AutoEncoder, batch: Batch) -> Side:
    """Our step as it trains, its draws included."""
    state = TrainState.init(model, built.parts.optimiser, ema=False)
    holder = [jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state)]

    def step_of(compiled: Any) -> Callable[[], Any]:
        def step() -> Any:
            holder[0], metrics = compiled((built.parts, batch), holder[0])
            return metrics

        return step

    return compiled_side(lambda: compile_step(built.parts, holder[0], batch), step_of)


def theirs(baseline: flax_baseline.Baseline, params: Any, inputs: flax_baseline.Inputs) -> Side:
    """The Flax step, given its draws."""
    holder = [jax.tree.map(jnp.array, params), baseline.optimiser.init(params)]

    def step_of(compiled: Any) -> Callable[[], Any]:
        def step() -> Any:
            holder[0], holder[1], loss = compiled(holder[0], holder[1], inputs)
            return loss

        return step

    return compiled_side(lambda: baseline.train_step.lower(holder[0], holder[1], inputs).compile(), step_of)


def our_inputs(built: Built, inputs: flax_baseline.Inputs, num_patches: int) -> tuple[Batch, Draw]:
    """The other side's batch and draws for ours: it has its noisy images first, ours takes turns within a period."""
    size = inputs.image.shape[0]
    noisy = inputs.eps.shape[0]
    period = built.parts.objective.period(size)
    per_row = noisy * period // size
    is_noisy = np.arange(size) % period < per_row
    order = np.empty(size, int)
    order[is_noisy], order[~is_noisy] = np.arange(noisy), np.arange(noisy, size)

    def filled(noisy_rows: jax.Array, clean_rows: jax.Array) -> jax.Array:
        return jnp.concatenate([noisy_rows, clean_rows])[order]

    clean = size - noisy
    uniform = filled(inputs.u_noisy.reshape(noisy, num_patches), inputs.u_clean.reshape(clean, num_patches))
    draw = Draw(
        t=filled((inputs.t_index + 1) / 1000, jnp.zeros(clean)),
        eps=filled(inputs.eps, jnp.zeros((clean, *inputs.image.shape[1:]))),
        order=jnp.argsort(uniform, axis=1),
        drop_label=jnp.zeros(size, bool),
    )
    return Batch(inputs.image[order], jnp.zeros(size, jnp.int32), jnp.ones(size, bool)), draw


def measure(options: Options, system: System) -> dict[str, Any]:
    """One row: both sides of one system."""
    config = presets.PRETRAIN[f"{system}-b4-in64"]()
    model_config = dataclasses.replace(
        config.model, variant=f"{options.variant}/4", remat=options.remat, scan=options.scan, dtype=options.dtype
    )
    data = dataclasses.replace(config.data, size=options.size, batch_size=options.batch)
    config = dataclasses.replace(config, model=model_config, data=data)
    assert config.data.expected is not None
    built = build(config, config.data.expected)

    baseline = flax_baseline.build(system, options.variant, 4, options.size)
    params = baseline.init(jax.random.key(0))
    flat = {name: np.asarray(leaf) for name, leaf in flax_baseline.flatten(params).items()}
    model = from_reference(flat, scan=options.scan, remat=options.remat, dtype=options.dtype)
    shape = (options.size, options.size, 3)
    inputs = flax_baseline.draw(system, jax.random.key(1), options.batch, model.num_patches, shape)
    batch, draw = our_inputs(built, inputs, model.num_patches)

    loss = float(eqx.filter_jit(built.parts.objective.loss)(model, built.parts.path, batch, draw)[0])
    their_loss = float(jax.jit(baseline.loss)(params, inputs))
    if options.dtype == "float32" and abs(loss - their_loss) > SAME_LOSS:
        sys.exit(f"error: {system}: our loss is {loss}, theirs {their_loss}: the networks are not the same")

    us, them = ours(options, built, model, batch), theirs(baseline, params, inputs)
    peaks = []
    for _ in range(options.steps + 1):
        us.time_once()
        peaks.append(measured_peak_flops(seconds=0.5))
        them.time_once()
    flops, peak = built.step_flops(), max(peaks)
    row = {
        "system": system,
        "ms": us.ms,
        "baseline_ms": them.ms,
        "ratio": us.ms / them.ms,
        "mfu": flops / (us.ms / 1e3) / peak,
        "baseline_mfu": flops / (them.ms / 1e3) / peak,
        "flops": flops,
        "peak_flops": peak,
        "temp_bytes": us.temp_bytes,
        "baseline_temp_bytes": them.temp_bytes,
        "peak_bytes": us.peak_bytes,
        "baseline_peak_bytes": them.peak_bytes,
        "memory_ratio": us.peak_bytes / them.peak_bytes,
        "compile_s": us.compile_s,
        "baseline_compile_s": them.compile_s,
        "loss": loss,
        "baseline_loss": their_loss,
    }
    return row | (time_parts(options, built, model, batch, draw) if options.parts else {})


def time_parts(options: Options, built: Built, model: AutoEncoder, batch: Batch, draw: Draw) -> dict[str, float]:
    """Milliseconds of our forward pass and of our loss with its gradient; the rest of a step is draws and optimiser."""
    forward = eqx.filter_jit(lambda m, b, d: built.parts.objective.loss(m, built.parts.path, b, d))
    # Its norm and not the gradient itself comes out: fresh memory for every parameter would be timed, too.
    gradient = eqx.filter_jit(lambda m, b, d: optax.tree.norm(loss_and_grads(built.parts, m, b, d)[1]))
    result = {}
    for name, function in (("forward_ms", forward), ("gradient_ms", gradient)):
        side = Side(lambda f=function: f(model, batch, draw), 0.0, 0, 0)
        for _ in range(options.steps + 1):
            side.time_once()
        result[name] = side.ms
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ("system", "ms", "Flax ms", "ratio", "MFU", "Flax MFU", "GFLOP", "temp MB", "Flax temp MB", "memory ratio")
    lines = [[*names, "compile s", "Flax compile s"]]
    lines.append(["---"] * len(lines[0]))
    for r in rows:
        numbers = [f"{r['ms']:,.0f}", f"{r['baseline_ms']:,.0f}", f"{r['ratio']:.2f}", f"{r['mfu']:.2f}"]
        numbers += [f"{r['baseline_mfu']:.2f}", f"{r['flops'] / 1e9:,.0f}", f"{r['temp_bytes'] / 1e6:,.0f}"]
        numbers += [f"{r['baseline_temp_bytes'] / 1e6:,.0f}", f"{r['memory_ratio']:.2f}"]
        lines.append([r["system"], *numbers, f"{r['compile_s']:.0f}", f"{r['baseline_compile_s']:.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measures, prints the table, and writes the rows."""
    options = tyro.cli(Options, description=__doc__)
    rows = []
    for system in options.systems:
        rows.append(measure(options, system))
        jax.clear_caches()
        print(json.dumps(rows[-1]) if options.parts else table(rows[-1:]).splitlines()[-1], flush=True)
    device = jax.devices()[0].device_kind
    shape = f"{options.variant}/4, {options.size} px, batch {options.batch}, {options.dtype}, remat {options.remat}"
    peak = max(row["peak_flops"] for row in rows)
    print(f"\n{shape}; {device}, {peak / 1e9:,.0f} GFLOP/s at matrix products in this run\n\n{table(rows)}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
