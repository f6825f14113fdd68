"""Sample quality against network evaluations for every sampler: `python benchmarks/sampler_quality.py --run RUN`.

Every sampler generates the same number of images from the same noise and labels. The table shows the Frechet distance
in the features of the classifier that is shipped with the package, and the fraction of images that it assigns to the
requested class. An evaluation with guidance computes the network twice and counts as one.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Int

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.eval import EvalContext
from umd_eqx.eval.extractors import choose_extractor
from umd_eqx.eval.generation import path_for
from umd_eqx.eval.generation_metrics import ReferenceStatistics, measure_generation
from umd_eqx.eval.protocol import UMD10K, labels_for, scale
from umd_eqx.models import AbstractModel
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.sampling import (
    DDIM,
    AbstractDenoiser,
    AbstractSampler,
    Adaptive,
    DPMSolverPP,
    Euler,
    Heun,
    ReverseSDE,
    UniformGrid,
    effective_sampler,
    guide,
    sample,
)
from umd_eqx.sampling.batch import image_noise

Method = Literal["tsit5", "dopri5"]

SAMPLERS: dict[str, AbstractSampler] = {
    "DDIM, eta 0": DDIM(eta=0.0, grid=UniformGrid(), head="v"),
    "DDIM, eta 1": DDIM(eta=1.0, grid=UniformGrid(), head="v"),
    "Euler": Euler(head="v"),
    "Heun": Heun(head="v"),
    "DPM-Solver++(2M)": DPMSolverPP(head="v"),
    "reverse SDE": ReverseSDE(head="v"),
}

ADAPTIVE = {
    f"{method}, rtol {rtol:g}": Adaptive(method=method, rtol=rtol, atol=rtol, head="v")
    for method in get_args(Method)
    for rtol in (1e-1, 1e-2)
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the benchmark."""

    run: str | None = None
    """Run directory or export. None: the weights that are shipped with the package."""
    calls: tuple[int, ...] = (5, 9, 17, 33, 65)
    """Numbers of network evaluations per image."""
    samples: int = 256
    """Images per measurement."""
    cfg_scale: float = 2.0
    """Guidance scale."""
    batch_size: int = 64
    """Batch size."""
    json: str | None = None
    """JSON file for the results."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="PNG")] = None
    """PNG file for the plot."""


def main(words: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, description=__doc__)
    if arguments.samples < 10:
        raise BadInput("samples", f"{arguments.samples} are too few to measure", "Use 10 or more")
    if min(arguments.calls, default=0) < 1:
        raise BadInput(
            "calls", "at least one number is required, and each must be 1 or more", "For example, use 5 9 17 33 65"
        )
    for flag, name in (("json", arguments.json), ("plot", arguments.plot)):
        if name is not None:
            require_writable(flag, name)
    source = from_pretrained(arguments.run)
    if source.model.num_classes is None:
        raise BadInput(
            "run",
            f"{arguments.run} is not class-conditional, so class recognition cannot be measured",
            "Use a fine-tuned run",
        )
    protocol, mesh = scale(UMD10K, arguments.samples), make_mesh()
    train, test = source.data.open()
    context = EvalContext(
        *(train, test, source.path, source.data.size, round_up_to_devices(source.data.eval_batch_size, mesh), mesh),
        tokenizer=source.tokenizer,
    )
    extractor = choose_extractor("fashion", None, source.spec)
    reference = ReferenceStatistics(context, protocol, extractor)
    baseline = reference.baseline()
    print(f"{source.describe()}; guidance {arguments.cfg_scale:g}; {arguments.samples} samples per measurement")
    print(f"as many real training images: fd_fashion {baseline:.2f}\n")
    print(f"{'sampler':<18} {'calls':>5} {'fd_fashion':>10} {'recognised':>10}")
    labels = labels_for(protocol, source.model.num_classes)
    options: dict[str, Any] = {"batch_size": arguments.batch_size, "mesh": mesh}
    rows = []
    for name, requested in points(source.model, source.path, arguments.calls):
        path, sampler = (
            path_for(requested, source.path),
            effective_sampler(requested, latents=source.tokenizer is not None),
        )
        denoiser = guide(sampler.denoiser(source.model, path), arguments.cfg_scale)
        generate = functools.partial(sample, denoiser, sampler, key=jax.random.key(0), **options)
        found = measure_generation(generate, reference, source.model.num_classes)
        calls = (
            mean_calls(sampler, denoiser, labels[: arguments.batch_size])
            if isinstance(sampler, Adaptive)
            else sampler.evaluations(denoiser)
        )
        kept = {key: found[key] for key in ("fd_fashion", "recognised")}
        rows.append({"sampler": name, "calls": calls, "baseline": baseline} | kept)
        print(f"{name:<18} {calls:>5.0f} {found['fd_fashion']:>10.2f} {found['recognised']:>10.1%}", flush=True)
    if arguments.json is not None:
        save_json(arguments.json, rows)
    if arguments.plot is not None:
        plot(rows, arguments, arguments.plot)
    return 0


def points(model: AbstractModel, path: AbstractPath, calls: Sequence[int]) -> list[tuple[str, AbstractSampler]]:
    """Returns the fixed-step samplers with each number of evaluations, and the adaptive ones with each tolerance."""
    fixed = [
        (name, with_steps(sampler, steps_for(sampler, sampler.denoiser(model, path_for(sampler, path)), count)))
        for name, sampler in SAMPLERS.items()
        for count in calls
    ]
    return [*fixed, *ADAPTIVE.items()]


def with_steps(sampler: AbstractSampler, steps: int) -> AbstractSampler:
    """Returns the sampler with the given number of steps."""
    return dataclasses.replace(sampler, steps=steps)  # pyright: ignore[reportCallIssue]


def steps_for(sampler: AbstractSampler, denoiser: AbstractDenoiser, calls: int) -> int:
    """Returns the largest number of steps that takes at most `calls` network evaluations; at least 1."""
    counts = {steps: with_steps(sampler, steps).evaluations(denoiser) for steps in range(2, calls + 1)}
    return max((steps for steps, count in counts.items() if (count or 0) <= calls), default=1)


def mean_calls(sampler: Adaptive, denoiser: AbstractDenoiser, labels: Int[np.ndarray, "b"]) -> float:
    """Returns the mean number of network evaluations per image."""

    @eqx.filter_jit
    def count(denoiser: AbstractDenoiser, labels: Int[Array, "b"]) -> Int[Array, "b"]:
        model, indices = denoiser.model, jnp.arange(len(labels))
        noise = jax.vmap(lambda i: image_noise(jax.random.key(0), i, model.image_shape)[0])(indices)
        return jax.vmap(lambda x, y: sampler.count(denoiser.with_cond(model.cond(y)), x))(noise, labels)

    return float(np.mean(count(denoiser, jnp.asarray(labels))))


def plot(rows: list[dict], arguments: Arguments, name: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    distance, share = figure.subplots(1, 2)
    for sampler in (*SAMPLERS, "tsit5", "dopri5"):
        mine = [row for row in rows if row["sampler"].startswith(sampler)]
        calls = [row["calls"] for row in mine]
        distance.plot(calls, [row["fd_fashion"] for row in mine], marker="o", markersize=3, label=sampler)
        share.plot(calls, [100 * row["recognised"] for row in mine], marker="o", markersize=3)
    distance.axhline(rows[0]["baseline"], color="grey", linestyle=":", label="as many real images")
    distance.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="fd_fashion")
    share.set(xscale="log", xlabel="network evaluations", ylabel="recognised as the requested class, %")
    for axes in (distance, share):
        ticks = np.unique([row["calls"] for row in rows if row["sampler"].startswith("DPM")])
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    distance.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
    distance.set_yticks([], minor=True)
    figure.legend(*distance.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(f"{arguments.samples} samples per measurement, guidance {arguments.cfg_scale:g}", fontsize=9)
    figure.savefig(name, dpi=110)


if __name__ == "__main__":
    exit_with(main)
