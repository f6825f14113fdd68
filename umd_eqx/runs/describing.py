"""What a run says of itself: the facts of its `environment.json`, and the first line in the terminal."""

from pathlib import Path
from typing import Any

from umd_eqx.core.sharding import describe_mesh
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.models.base import num_parameters
from umd_eqx.recipes.build import Built
from umd_eqx.training.flops import peak_flops
from umd_eqx.training.step import TrainState


def facts_of(built: Built, state: TrainState) -> dict[str, Any]:
    """Returns the size and cost of a run: steps, parameters, FLOPs of a step, peak FLOP/s, and its data."""
    peak, source = peak_flops()
    return {
        "steps": built.total,
        "parameters": num_parameters(state.model),
        "flops_per_step": built.step_flops(),
        "peak_flops_per_device": peak,
        "peak_from": source,
        "data": built.spec._asdict(),
    }


def headline(built: Built, run_dir: Path, preset: str, state: TrainState) -> str:
    """Returns one line on a run: its directory, preset, network, data and devices."""
    data, spec = built.config.data, built.spec
    network = f"{built.config.model.title} with {num_parameters(state.model):,} parameters"
    return (
        f"{run_dir}: {preset}, {network}; {spec.name}, {spec.num_train:,} images "
        f"at {data.size} px, batch size {data.batch_size}; {describe_mesh(built.parts.mesh)}"
    )


def broken_images(splits: tuple[SkipBroken, CountBroken]) -> list[str]:
    """Returns a line for each of the splits train and test of which images were skipped."""
    lines = []
    for name, split in zip(("train", "test"), splits, strict=True):
        if split.broken:
            some = ", ".join(map(str, sorted(split.broken)[:10]))
            lines.append(f"{len(split.broken)} {name} images could not be read and were skipped: {some}")
    return lines
