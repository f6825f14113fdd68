"""The implementations of the training step that `train_step.py` compares."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax_baseline
import jax
import jax.numpy as jnp

from umd_eqx.core.types import Batch
from umd_eqx.models import AutoEncoder
from umd_eqx.recipes.build import Built
from umd_eqx.training.step import TrainState, compile_step


@dataclasses.dataclass
class Implementation:
    """A training step with its measured times and, for a compiled step, its compilation time and memory."""

    step: Callable[[], Any]
    compile_s: float = 0.0
    temp_bytes: int = 0
    peak_bytes: int = 0
    times: list[float] = dataclasses.field(default_factory=list)

    def time_once(self) -> None:
        """Runs a step and appends its duration in seconds to `times`."""
        start = time.perf_counter()
        jax.block_until_ready(self.step())
        self.times.append(time.perf_counter() - start)

    @property
    def ms(self) -> float:
        """The median step time in milliseconds, excluding the first step."""
        return 1e3 * statistics.median(self.times[1:])


def compiled_implementation(compile_: Callable[[], Any], step_of: Callable[[Any], Callable[[], Any]]) -> Implementation:
    """Compiles a step and records its compilation time, its temporary memory and its peak memory."""
    start = time.perf_counter()
    compiled = compile_()
    seconds = time.perf_counter() - start
    memory = getattr(compiled, "compiled", compiled).memory_analysis()
    live = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Implementation(step_of(compiled), seconds, memory.temp_size_in_bytes, memory.temp_size_in_bytes + live)


def our_implementation(built: Built, model: AutoEncoder, batch: Batch) -> Implementation:
    """The training step of this package, including its random draws."""
    state = TrainState.init(model, built.parts.optimiser, ema=False)
    holder = [jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state)]

    def step_of(compiled: Any) -> Callable[[], Any]:
        def step() -> Any:
            holder[0], metrics = compiled((built.parts, batch), holder[0])
            return metrics

        return step

    return compiled_implementation(lambda: compile_step(built.parts, holder[0], batch), step_of)


def flax_implementation(baseline: flax_baseline.Baseline, params: Any, inputs: flax_baseline.Inputs) -> Implementation:
    """The training step of the Flax baseline, with its random draws as inputs."""
    holder = [jax.tree.map(jnp.array, params), baseline.optimiser.init(params)]

    def step_of(compiled: Any) -> Callable[[], Any]:
        def step() -> Any:
            holder[0], holder[1], loss = compiled(holder[0], holder[1], inputs)
            return loss

        return step

    return compiled_implementation(lambda: baseline.train_step.lower(holder[0], holder[1], inputs).compile(), step_of)


def torch_implementation(
    system: str, built: Built, model: AutoEncoder, inputs: flax_baseline.Inputs
) -> tuple[Implementation, dict[str, float]]:
    """The training step of the PyTorch baseline, including its random draws; its loss on `inputs`; its threads."""
    import torch_weights  # PyTorch is optional and slow to import

    threads = torch_weights.use_all_cores()
    trainer = torch_weights.trainer(system, built, model)
    images, draw = torch_weights.torch_inputs(inputs)
    loss = trainer.loss(images, draw).item()
    return Implementation(lambda: trainer.step(images)), {"torch_loss": loss, "torch_threads": threads}
