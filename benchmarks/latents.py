"""Speed of encoding a data set, and of training steps on stored latents and on images encoded in each step.

    python benchmarks/latents.py [--tokenizer fashion-kl] [--batch 64] [--rounds 5] [--json FILE]

The FLOPs of encoding are those counted by XLA; the peak FLOP/s are measured in the same run. The two kinds of steps are
timed alternately, and the shortest time of all rounds is reported. Both are the steps of `experiments/pretrain.py
latent-umd`, from a batch on the host to the updated state.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.core.types import Batch
from umd_eqx.latents.stream import draw_stored, encode_batch, join_moments
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.recipes.build import build
from umd_eqx.recipes.pretrain import latent_umd
from umd_eqx.runs.tokenizers import LoadedTokenizer, load_tokenizer
from umd_eqx.training.flops import encode_flops, measured_peak_flops
from umd_eqx.training.step import TrainState, train_step


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    tokenizer: str = "fashion-kl"
    """Tokenizer, as for --tokenizer of pretrain.py. Training steps are only measured for tokenizers of one channel."""
    size: int = 28
    """Height and width of the images in pixels."""
    batch: int = 64
    """Batch size."""
    rounds: int = 5
    """Number of timed rounds, after an untimed warm-up."""
    json: Path | None = None
    """JSON file for the results."""


def encoding(loaded: LoadedTokenizer, images: np.ndarray, rounds: int) -> dict[str, float]:
    """Returns the throughput of encoding, its FLOPs and the fraction of the peak FLOP/s that it reaches."""
    tokenizer, peak, x = loaded.tokenizer, measured_peak_flops(), jnp.asarray(images)
    seconds = min_seconds([lambda: moments_of(tokenizer, x)], rounds)[0]
    peak = max(peak, measured_peak_flops())  # the speed of the machine drifts
    flops = encode_flops(tokenizer, (images.shape[1], images.shape[2], images.shape[3]))
    rate = len(images) / seconds
    return {"images_per_s": rate, "flops": flops, "peak_flops": peak, "mfu": rate * flops / peak}


def steps(loaded: LoadedTokenizer, images: np.ndarray, options: Options) -> list[dict[str, float]]:
    """Times a training step on stored latents, and one that encodes its images."""
    config = latent_umd()
    data = dataclasses.replace(config.data, size=options.size, batch_size=options.batch)
    config = dataclasses.replace(config, tokenizer=options.tokenizer, latent=loaded.spec, data=data)
    built, tokenizer = build(config, config.data.describe()), loaded.tokenizer
    pixels = Batch(images, np.zeros(options.batch, np.int32), np.ones(options.batch, bool))
    moments = dataclasses.replace(pixels, image=np.asarray(moments_of(tokenizer, jnp.asarray(images))))
    states = {kind: built.init() for kind in ("stored", "on the way")}

    def step(kind: str, latents: Callable[..., Batch], batch: Batch, *rest: Any) -> TrainState:
        given = latents(tokenizer, batch, jax.random.key(0), jnp.asarray(0), *rest)
        states[kind], _ = train_step(built.parts, states[kind], given)
        return states[kind]

    kinds = [
        lambda: step("stored", draw_stored, moments),
        lambda: step("on the way", encode_batch, pixels, built.parts.mesh),
    ]
    times = min_seconds(kinds, options.rounds)
    return [
        {"ms": 1e3 * seconds, "ratio": seconds / times[0], "images_per_s": options.batch / seconds} for seconds in times
    ]


def min_seconds(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Returns the shortest time of each function in seconds. After a warm-up, they are called alternately."""
    for function in functions:
        jax.block_until_ready(function())
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            before = time.perf_counter()
            jax.block_until_ready(function())
            best[i] = min(best[i], time.perf_counter() - before)
    return best


@eqx.filter_jit
def moments_of(tokenizer: AbstractTokenizer, images: jax.Array) -> jax.Array:
    """Returns the moments that `experiments/encode_latents.py` stores for each image."""
    return jax.vmap(lambda image: join_moments(tokenizer.encode_raw(image), mode_only=False))(images)


def run(words: list[str]) -> int:
    """Runs the benchmark, prints a table, writes the JSON file and returns the exit code."""
    options = tyro.cli(Options, args=words, description=__doc__)
    for name in ("size", "batch", "rounds"):
        if getattr(options, name) < 1:
            raise BadInput(name, f"{getattr(options, name)} is too small", "Use 1 or more")
    if options.json is not None:
        require_writable("json", options.json)
    loaded = load_tokenizer(options.tokenizer)
    if options.size % loaded.tokenizer.factor:
        factor = loaded.tokenizer.factor
        problem = f"{options.size} is not a multiple of the tokenizer's downsampling factor, {factor}"
        raise BadInput("size", problem, f"Use a multiple of {loaded.tokenizer.factor}")
    shape = (options.batch, options.size, options.size, loaded.tokenizer.channels)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    row = encoding(loaded, images, options.rounds)
    rows: list[dict[str, Any]] = [{"what": "encoding", "tokenizer": options.tokenizer, **row}]
    print(f"{loaded.title}; {options.batch} images of {options.size} px per batch")
    print(
        f"encoding    {row['images_per_s']:,.0f} images/s, {row['flops'] / 1e9:.3f} GFLOP per image, "
        f"MFU {row['mfu']:.2f} of {row['peak_flops'] / 1e9:,.0f} GFLOP/s"
    )
    if loaded.tokenizer.channels == 1:
        for kind, row in zip(("stored", "on the way"), steps(loaded, images, options), strict=True):
            rows.append({"what": f"step, latents {kind}", "tokenizer": options.tokenizer, **row})
            print(
                f"{kind:12}{row['ms']:,.0f} ms per step, {row['images_per_s']:,.0f} images/s, ratio {row['ratio']:.2f}"
            )
    if options.json is not None:
        save_json(options.json, rows)
    return 0


if __name__ == "__main__":
    exit_with(run)
