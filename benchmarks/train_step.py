"""Time and memory of a training step, compared with plain Flax and, where installed, plain PyTorch.

    python benchmarks/train_step.py [--systems umd mae dit maskdit] [--steps 5] [--parts] [--json FILE]

Flax uses the published setting (scanned layers, full rematerialisation); PyTorch is eager, without checkpointing. All
implementations start from the same weights and must compute the same loss on the same inputs. Their steps are timed
alternately (ours, Flax, PyTorch, ours, ...), so that drifts of the machine's speed affect all of them, and each uses
all cores. Times are medians; ratios are ours divided by theirs. The peak FLOP/s are measured between the steps. Memory
is reported by the XLA compiler, so there is none for PyTorch. Needs `pip install -e ".[bench]"`, and `".[parity]"` for
PyTorch.
"""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.types import Batch
from umd_eqx.models import AutoEncoder, from_reference
from umd_eqx.models.vit.stack import Remat
from umd_eqx.objectives import Draw
from umd_eqx.recipes import pretrain as presets
from umd_eqx.recipes.build import Built, build
from umd_eqx.training.flops import measured_peak_flops
from umd_eqx.training.step import loss_and_grads

try:
    import flax_baseline
    from implementations import Implementation, flax_implementation, our_implementation, torch_implementation
except ModuleNotFoundError as error:
    print(f'error: {error}. The baseline needs an extra: pip install -e ".[bench]"', file=sys.stderr)
    sys.exit(2)

System = Literal["umd", "mae", "dit", "maskdit"]
LOSS_TOLERANCE = 1e-5


def has_torch() -> bool:
    """Returns whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    systems: Annotated[tuple[System, ...], tyro.conf.arg(aliases=["-s"])] = ("umd", "mae", "dit", "maskdit")
    """Systems to measure."""
    variant: Literal["S", "B", "L"] = "B"
    """Size of the network, at patch 4."""
    size: int = 64
    """Height and width of the images in pixels."""
    batch: int = 8
    """Batch size."""
    steps: int = 5
    """Number of timed steps of each implementation, after an untimed warm-up."""
    remat: Remat = "dots"
    """Rematerialisation policy of our backward pass."""
    scan: bool = True
    """Scan over our layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of our network; the baselines use float32, as published."""
    parts: bool = False
    """Also time our forward pass and our gradient separately."""
    torch: bool = dataclasses.field(default_factory=lambda: has_torch())
    """Also time PyTorch, which runs on the CPU only. Default: whether it is installed."""
    json: Path | None = None
    """JSON file for the results."""

    def validate(self) -> None:
        """Raises `BadInput` for invalid options."""
        for name in ("size", "batch", "steps"):
            if getattr(self, name) < 1:
                raise BadInput(name, f"{getattr(self, name)} is too small", "Use 1 or more")
        if self.torch and not has_torch():
            hint = 'Run pip install -e ".[parity]", or omit the flag'
            raise BadInput("torch", "PyTorch is not installed", hint)
        if self.json is not None:
            require_writable("json", self.json)


def our_inputs(built: Built, inputs: flax_baseline.Inputs, num_patches: int) -> tuple[Batch, Draw]:
    """Converts the inputs of the Flax baseline to ours.

    The baseline orders noised images first; ours interleaves noised and clean images with a fixed period.
    """
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


class Case(NamedTuple):
    """A system to measure: our implementation and the Flax baseline with the same weights and inputs."""

    system: System
    built: Built
    model: AutoEncoder
    batch: Batch
    draw: Draw
    baseline: flax_baseline.Baseline
    params: Any
    inputs: flax_baseline.Inputs

    @classmethod
    def of(cls, options: Options, system: System) -> "Case":
        """Builds the preset of the system with the given options."""
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
        return cls(system, built, model, batch, draw, baseline, params, inputs)


def measure(options: Options, system: System) -> dict[str, Any]:
    """Measures all implementations of a system. Exits with an error if their losses differ."""
    case = Case.of(options, system)
    built, model, batch, draw = case.built, case.model, case.batch, case.draw
    row: dict[str, Any] = {"system": system}
    row["loss"] = float(eqx.filter_jit(built.parts.objective.loss)(model, built.parts.path, batch, draw)[0])
    row["baseline_loss"] = float(jax.jit(case.baseline.loss)(case.params, case.inputs))
    pytorch = {}
    if options.torch:
        pytorch["torch_"], numbers = torch_implementation(system, built, model, case.inputs)
        row |= numbers
    for loss in (row[name] for name in ("baseline_loss", "torch_loss") if name in row):
        if options.dtype == "float32" and not abs(row["loss"] - loss) <= LOSS_TOLERANCE:
            sys.exit(f"error: {system}: our loss is {row['loss']}, theirs {loss}: the networks differ")

    # The keys are the prefixes of the columns: none for ours, "baseline_" for Flax, "torch_" for PyTorch.
    implementations: dict[str, Implementation] = {
        "": our_implementation(built, model, batch),
        "baseline_": flax_implementation(case.baseline, case.params, case.inputs),
        **pytorch,
    }
    peaks = []
    for _ in range(options.steps + 1):
        for implementation in implementations.values():
            implementation.time_once()
        peaks.append(measured_peak_flops(seconds=0.5))
    row |= {"flops": built.step_flops(), "peak_flops": max(peaks)}
    for prefix, implementation in implementations.items():
        row[f"{prefix}ms"] = implementation.ms
        row[f"{prefix}times_ms"] = [1e3 * seconds for seconds in implementation.times[1:]]
        row[f"{prefix}mfu"] = row["flops"] / (implementation.ms / 1e3) / row["peak_flops"]
        if implementation.compile_s > 0:
            numbers = {
                "temp_bytes": implementation.temp_bytes,
                "peak_bytes": implementation.peak_bytes,
                "compile_s": implementation.compile_s,
            }
            row |= {f"{prefix}{name}": number for name, number in numbers.items()}
    row["ratio"] = row["ms"] / row["baseline_ms"]
    row["memory_ratio"] = row["peak_bytes"] / row["baseline_peak_bytes"]
    if options.torch:
        row["torch_ratio"] = row["ms"] / row["torch_ms"]
    return row | (time_parts(options, built, model, batch, draw) if options.parts else {})


def time_parts(options: Options, built: Built, model: AutoEncoder, batch: Batch, draw: Draw) -> dict[str, float]:
    """Times our forward pass and our gradient in milliseconds; the rest of a step is random draws and optimiser."""
    forward = eqx.filter_jit(lambda m, b, d: built.parts.objective.loss(m, built.parts.path, b, d))
    # Returning the norm instead of the gradient avoids timing the allocation of an output for every parameter.
    gradient = eqx.filter_jit(lambda m, b, d: optax.tree.norm(loss_and_grads(built.parts, m, b, d)[1]))
    result = {}
    for name, function in (("forward_ms", forward), ("gradient_ms", gradient)):
        implementation = Implementation(lambda f=function: f(model, batch, draw))
        for _ in range(options.steps + 1):
            implementation.time_once()
        result[name] = implementation.ms
    return result


# Heading, key of the row, unit and format.
COLUMNS = (
    ("system", "system", None, ""),
    ("ms", "ms", 1, ",.0f"),
    ("Flax ms", "baseline_ms", 1, ",.0f"),
    ("ratio", "ratio", 1, ".2f"),
    ("PyTorch ms", "torch_ms", 1, ",.0f"),
    ("PyTorch ratio", "torch_ratio", 1, ".2f"),
    ("MFU", "mfu", 1, ".2f"),
    ("Flax MFU", "baseline_mfu", 1, ".2f"),
    ("PyTorch MFU", "torch_mfu", 1, ".2f"),
    ("GFLOP", "flops", 1e9, ",.0f"),
    ("temp MB", "temp_bytes", 1e6, ",.0f"),
    ("Flax temp MB", "baseline_temp_bytes", 1e6, ",.0f"),
    ("memory ratio", "memory_ratio", 1, ".2f"),
    ("compile s", "compile_s", 1, ".0f"),
    ("Flax compile s", "baseline_compile_s", 1, ".0f"),
)


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table of the measured columns."""
    columns = [column for column in COLUMNS if column[1] in rows[0]]
    lines = [[heading for heading, *_ in columns], ["---"] * len(columns)]
    for row in rows:
        lines.append([f"{row[key] if unit is None else row[key] / unit:{style}}" for _, key, unit, style in columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(words: list[str]) -> int:
    """Runs the benchmark, prints the table and writes the JSON file. Raises `BadInput` for invalid options."""
    options = tyro.cli(Options, args=words, description=__doc__)
    options.validate()
    if not has_torch():
        print('PyTorch is not installed; its columns are omitted: pip install -e ".[parity]"', file=sys.stderr)
    elif options.torch and jax.default_backend() != "cpu":
        print("PyTorch is timed on a CPU only; its columns are omitted", file=sys.stderr)
        options = dataclasses.replace(options, torch=False)
    rows = []
    for system in options.systems:
        rows.append(measure(options, system))
        jax.clear_caches()
        print(json.dumps(rows[-1]) if options.parts else table(rows[-1:]).splitlines()[-1], flush=True)
    device = jax.devices()[0].device_kind
    shape = f"{options.variant}/4, {options.size} px, batch {options.batch}, {options.dtype}, remat {options.remat}"
    peak = max(row["peak_flops"] for row in rows)
    threads = f"; threads of PyTorch: {rows[0]['torch_threads']}" if options.torch else ""
    print(f"\n{shape}; {device}, {peak / 1e9:,.0f} GFLOP/s in matrix products in this run{threads}\n\n{table(rows)}")
    if options.json is not None:
        save_json(options.json, rows)
    return 0


if __name__ == "__main__":
    exit_with(main)
