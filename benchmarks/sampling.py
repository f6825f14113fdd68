"""Overhead of the samplers: each fixed-step sampler against a hand-written loop and against the network alone.

    python benchmarks/sampling.py [--samplers ddim heun] [--steps 32] [--batch 32] [--json FILE]

The loop is a `lax.scan` over a table of coefficients with the same number of network evaluations; both must produce
the same images. Sampler, loop and forward passes of the network are timed alternately, so that drifts of the machine's
speed affect all of them; the shortest time of all rounds is reported. The network is randomly initialised, because its
weights do not affect its speed.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.core.paths import NETWORK_STEPS, AbstractSmoothPath, CosinePath
from umd_eqx.core.predictions import X0EpsPrediction
from umd_eqx.core.types import Image
from umd_eqx.models import AbstractModel, ModelConfig
from umd_eqx.sampling import DDIM, AbstractSampler, DPMSolverPP, Euler, Heun, ModelDenoiser, ReverseSDE
from umd_eqx.sampling.levels import levels

Name = Literal["ddim", "ancestral", "euler", "heun", "dpmpp", "sde"]
IMAGE_TOLERANCE = 1e-3
CLASSES = 10
FORWARD_PASSES = 16
"""Forward passes of the network per round; the round reports their mean time."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    samplers: Annotated[tuple[Name, ...], tyro.conf.arg(aliases=["-s"])] = (
        *("ddim", "ancestral", "euler"),
        *("heun", "dpmpp", "sde"),
    )
    """Samplers to measure; ancestral is ddim with eta 1."""
    variant: str = "nano/4"
    """Size and patch size of the network."""
    size: int = 28
    """Height and width of the images in pixels."""
    channels: int = 1
    """Channels of the images."""
    batch: int = 32
    """Batch size."""
    steps: int = 32
    """Steps of each sampler; heun evaluates the network twice per step."""
    rounds: int = 7
    """Number of timed rounds, after an untimed warm-up."""
    json: Path | None = None
    """JSON file for the results."""


def sampler_of(name: Name, steps: int) -> AbstractSampler:
    """Returns the sampler with its default time grid."""
    match name:
        case "ddim" | "ancestral":
            return DDIM(steps=steps, eta=float(name == "ancestral"))
        case "euler":
            return Euler(steps=steps)
        case "heun":
            return Heun(steps=steps)
        case "dpmpp":
            return DPMSolverPP(steps=steps)
        case "sde":
            return ReverseSDE(steps=steps)


class Coefficients(eqx.Module):
    """Precomputed coefficients of the path at every time at which the hand-written loop evaluates the network."""

    t: Float[Array, "*k"]
    alpha: Float[Array, "*k"]
    sigma: Float[Array, "*k"]
    alpha_rate: Float[Array, "*k"]
    sigma_rate: Float[Array, "*k"]

    @classmethod
    def at(cls, path: AbstractSmoothPath, times: np.ndarray) -> "Coefficients":
        """Computes the coefficients of `path` at `times`."""
        rates = jax.vmap(path.rates)(jnp.asarray(times, jnp.float32))
        return cls(*(jnp.asarray(column, jnp.float32) for column in (times, *levels(path, times), *rates)))

    def ends(self, denoiser: ModelDenoiser, x: Image) -> tuple[Image, Image]:
        """Returns the clipped clean image implied by the predicted noise, and the noise consistent with it."""
        prediction = denoiser.model(x, denoiser.cond.at(NETWORK_STEPS * self.t))
        assert isinstance(prediction, X0EpsPrediction)
        x0 = jnp.clip((x - self.sigma * prediction.eps) / self.alpha, -1.0, 1.0)
        return x0, (x - self.alpha * x0) / self.sigma

    def velocity(self, denoiser: ModelDenoiser, x: Image, *, reverse_sde: bool = False) -> Image:
        """Returns dx/dt of the probability-flow ODE, or the drift of the reverse SDE."""
        x0, eps = self.ends(denoiser, x)
        drift = self.alpha_rate * x0 + self.sigma_rate * eps
        return drift + self.squared_diffusion / (2.0 * self.sigma) * eps if reverse_sde else drift

    @property
    def squared_diffusion(self) -> Array:
        """g^2 of the forward SDE."""
        return 2.0 * (self.sigma * self.sigma_rate - self.sigma**2 * self.alpha_rate / self.alpha)


def by_hand(sampler: AbstractSampler, denoiser: ModelDenoiser, x: Image, key: PRNGKeyArray) -> Image:
    """Samples an image with a plain `lax.scan`."""
    path, ends = denoiser.path, denoiser.ends
    assert isinstance(path, AbstractSmoothPath)
    assert isinstance(sampler, DDIM | Euler | Heun | DPMSolverPP | ReverseSDE)
    times = sampler.grid.times(path, sampler.steps, x.shape[0], ends)
    table, numbers = Coefficients.at(path, times), jnp.arange(len(times))
    x = table.sigma[0] * x
    if isinstance(sampler, DDIM | DPMSolverPP):
        weights = tuple(jnp.asarray(w, x.dtype) for w in sampler.weights(path, x.shape[0], ends))

        def weighted(carry: tuple[Image, Image], row: Any) -> tuple[tuple[Image, Image], None]:
            (x, before), (number, here, (of_image, of_x0, of_other)) = carry, row
            x0, _ = here.ends(denoiser, x)
            other = before
            if isinstance(sampler, DDIM) and sampler.eta:
                other = jax.random.normal(jax.random.fold_in(key, number), x.shape)
            return (of_image * x + of_x0 * x0 + of_other * other, x0), None

        return jax.lax.scan(weighted, (x, jnp.zeros_like(x)), (numbers, table, weights))[0][0]

    def step(x: Image, row: Any) -> tuple[Image, None]:
        number, here, there = row
        dt = there.t - here.t
        if isinstance(sampler, ReverseSDE):
            noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
            drift = here.velocity(denoiser, x, reverse_sde=True)
            return x + dt * drift + jnp.sqrt(-dt * here.squared_diffusion) * noise, None
        first = here.velocity(denoiser, x)
        if isinstance(sampler, Euler):
            return x + dt * first, None
        return x + 0.5 * dt * (first + there.velocity(denoiser, x + dt * first)), None

    here, there, last = (
        jax.tree.map(lambda leaf, piece=piece: leaf[piece], table) for piece in (slice(-1), slice(1, None), -1)
    )
    x, _ = jax.lax.scan(step, x, (numbers[:-1], here, there))
    return last.ends(denoiser, x)[0]


def min_ms(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the shortest time of each function in milliseconds. Calls alternate; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(mine[1:]) for name, mine in times.items()}


def measure(options: Options, name: Name) -> dict[str, Any]:
    """Measures a sampler, its hand-written loop and the forward pass. Exits with an error if the images differ."""
    shape = (options.size, options.size, options.channels)
    config = ModelConfig(variant=options.variant, labels=True)
    model = config.build(options.size, options.channels, CLASSES, key=jax.random.key(0))
    path, sampler = CosinePath(), sampler_of(name, options.steps)
    noise = jax.random.normal(jax.random.key(1), (options.batch, *shape))
    labels, keys = jnp.arange(options.batch) % CLASSES, jax.random.split(jax.random.key(2), options.batch)

    def denoiser_of(model: AbstractModel, y: Array) -> ModelDenoiser:
        return sampler.denoiser(model, path, model.cond(y))

    @eqx.filter_jit
    def ours(model: AbstractModel, noise: Array, labels: Array, keys: Array) -> Array:
        return jax.vmap(lambda x, y, key: sampler(denoiser_of(model, y), x, key))(noise, labels, keys)

    @eqx.filter_jit
    def hand(model: AbstractModel, noise: Array, labels: Array, keys: Array) -> Array:
        return jax.vmap(lambda x, y, key: by_hand(sampler, denoiser_of(model, y), x, key))(noise, labels, keys)

    @eqx.filter_jit
    def forward(model: AbstractModel, x: Array, t: Array, y: Array) -> Any:
        return jax.vmap(lambda x, y: model(x, model.cond(y).at(t)))(x, y)

    def passes() -> Any:
        return [jax.block_until_ready(forward(model, noise, jnp.asarray(500.0), labels)) for _ in range(FORWARD_PASSES)]

    arguments = (model, noise, labels, keys)
    # diffrax draws the noise of the SDE from its own keys, so the images cannot be compared.
    difference = 0.0 if name == "sde" else float(jnp.abs(ours(*arguments) - hand(*arguments)).max())
    if not difference <= IMAGE_TOLERANCE:
        sys.exit(f"error: {name}: the images of sampler and loop differ by {difference:.1e}")
    calls = {"sampler": lambda: ours(*arguments), "scan": lambda: hand(*arguments), "forward": passes}
    ms = min_ms(calls, options.rounds)
    evaluations = sampler.evaluations(denoiser_of(model, labels[0]))
    assert evaluations is not None
    forward_ms = ms["forward"] / FORWARD_PASSES
    return {
        "sampler": name,
        "ms": ms["sampler"],
        "scan_ms": ms["scan"],
        "ratio": ms["sampler"] / ms["scan"],
        "evaluations": evaluations,
        "evaluations_per_s": evaluations * options.batch / (ms["sampler"] / 1e3),
        "forward_ms": forward_ms,
        "forward_ratio": ms["sampler"] / evaluations / forward_ms,
        "batch": options.batch,
        "difference": difference,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table."""
    lines = [["sampler", "ms", "scan ms", "ratio", "calls", "images evaluated/s", "forward ms", "evaluation / forward"]]
    lines.append(["---"] * len(lines[0]))
    for r in rows:
        numbers = [f"{r['ms']:,.1f}", f"{r['scan_ms']:,.1f}", f"{r['ratio']:.3f}", f"{r['evaluations']}"]
        numbers += [f"{r['evaluations_per_s']:,.0f}", f"{r['forward_ms']:.2f}", f"{r['forward_ratio']:.3f}"]
        lines.append([r["sampler"], *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(words: list[str]) -> int:
    """Runs the benchmark, prints the table and writes the JSON file. Raises `BadInput` for invalid options."""
    options = tyro.cli(Options, args=words, description=__doc__)
    for name in ("batch", "rounds"):
        if getattr(options, name) < 1:
            raise BadInput(name, f"{getattr(options, name)} is too small", "Use 1 or more")
    if options.steps < 2:
        raise BadInput("steps", f"{options.steps} is too small", "Use 2 or more")
    rows = []
    for name in options.samplers:
        rows.append(measure(options, name))
        jax.clear_caches()
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    shape = f"{options.variant}, {options.size} px, batch {options.batch}, {options.steps} steps, float32"
    print(f"\n{shape}; {jax.devices()[0].device_kind}; minimum of {options.rounds} rounds\n\n{table(rows)}")
    if options.json is not None:
        save_json(options.json, rows)
    return 0


if __name__ == "__main__":
    exit_with(main)
