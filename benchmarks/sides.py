"""The implementations that `train_step.py` compares: each a training step to call, turn by turn with the others."""

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
class Side:
    """One implementation: a step to call, and what the compiler said of it, if there is one."""

    step: Callable[[], Any]
    compile_s: float = 0.0
    temp_bytes: int = 0
    peak_bytes: int = 0
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


def our_side(built: Built, model: AutoEncoder, batch: Batch) -> Side:
    """Our step as it trains, its draws included."""
    state = TrainState.init(model, built.parts.optimiser, ema=False)
    holder = [jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state)]

    def step_of(compiled: Any) -> Callable[[], Any]:
        def step() -> Any:
            holder[0], metrics = compiled((built.parts, batch), holder[0])
            return metrics

        return step

    return compiled_side(lambda: compile_step(built.parts, holder[0], batch), step_of)


def flax_side(baseline: flax_baseline.Baseline, params: Any, inputs: flax_baseline.Inputs) -> Side:
    """The Flax step, given its draws."""
    holder = [jax.tree.map(jnp.array, params), baseline.optimiser.init(params)]

    def step_of(compiled: Any) -> Callable[[], Any]:
        def step() -> Any:
            holder[0], holder[1], loss = compiled(holder[0], holder[1], inputs)
            return loss

        return step

    return compiled_side(lambda: baseline.train_step.lower(holder[0], holder[1], inputs).compile(), step_of)


def torch_side(
    system: str, built: Built, model: AutoEncoder, inputs: flax_baseline.Inputs
) -> tuple[Side, dict[str, float]]:
    """The PyTorch step as it trains, its draws included; and its loss of the given inputs, and its threads by name."""
    import torch_weights  # PyTorch is optional and takes seconds to import

    threads = torch_weights.use_all_cores()
    trainer = torch_weights.trainer(system, built, model)
    images, draw = torch_weights.torch_inputs(inputs)
    loss = trainer.loss(images, draw).item()
    return Side(lambda: trainer.step(images)), {"torch_loss": loss, "torch_threads": threads}
