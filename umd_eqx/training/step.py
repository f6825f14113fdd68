"""One training step, as a pure function of its state and a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree

from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.sharding import micro_batches, place, replicated
from umd_eqx.core.types import Batch, Metrics, Scalar
from umd_eqx.objectives import AbstractObjective
from umd_eqx.training.optim import ema_update
from umd_eqx.training.trainable import EVERYTHING

Trainable = Callable[[PyTree], PyTree]
"""Selects what is trained, as `umd_eqx.training.trainable.AbstractTrainable`: from a model, a bool for each leaf.

It may look at the structure of the model alone, so that it selects the same leaves at every step.
"""


class TrainState(eqx.Module):
    """Everything that changes in training, and all that a checkpoint holds. The model is whatever the objective trains,
    with what is frozen of it.

    No key: a step's key is made of the seed and `step`. `skipped` counts the steps whose loss or gradient was not
    finite and which changed nothing else.
    """

    step: Int[Array, ""]
    model: eqx.Module
    ema: eqx.Module | None
    opt_state: PyTree
    skipped: Int[Array, ""]

    @classmethod
    def init(
        cls,
        model: eqx.Module,
        optimiser: optax.GradientTransformation,
        *,
        ema: bool,
        trainable: Trainable = EVERYTHING,
    ) -> "TrainState":
        """The state before the first step; the average starts as a copy of the weights.

        The state of the optimiser covers what is `trainable` and nothing else.
        """
        params = eqx.filter(model, trainable(model))
        average = jax.tree.map(lambda leaf: jnp.array(leaf) if eqx.is_array(leaf) else leaf, model) if ema else None
        return cls(jnp.zeros((), jnp.int32), model, average, optimiser.init(params), jnp.zeros((), jnp.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What a step is made of and does not change: static for the compiler."""

    objective: AbstractObjective
    path: AbstractPath
    optimiser: optax.GradientTransformation
    schedule: optax.Schedule
    mesh: Mesh
    seed: int
    ema_rate: float | None = None
    accumulate: int = 1
    trainable: Trainable = EVERYTHING
    """What is trained: gradients, their norm, the optimiser and the average of the weights cover this part alone."""


def train_step(parts: Parts, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """One update, compiled. The batch is sharded over the devices; the state is a copy on each, and is donated.

    What is not `parts.trainable` keeps its values bit for bit, in the model and in its average.

    The metrics are scalars by name: the loss and its parts, `grad_norm` before clipping, `lr`, and `skipped`, 1 where
    the loss or the gradient was not finite: then only `step` and the count of such steps, `skipped_total`, move.
    """
    return _update((parts, batch), state)


def compile_step(parts: Parts, state: PyTree, batch: PyTree) -> Any:
    """The compiled step: to see what it needs (`.compiled.memory_analysis()`), or to call it as often as wanted.

    Call it with `((parts, batch), state)`.
    """
    return _update.lower((parts, batch), state).compile()  # pyright: ignore[reportFunctionMemberAccess]


# What comes first is not donated: the batch has no output that could take its place.
@eqx.filter_jit(donate="all-except-first")
def _update(given: tuple[Parts, Batch], state: TrainState) -> tuple[TrainState, Metrics]:
    parts, batch = given
    key = jax.random.fold_in(jax.random.key(parts.seed), state.step)
    numbers = parts.objective.draw(key, state.model, parts.path, batch.image.shape)
    (loss, metrics), grads = loss_and_grads(parts, state.model, batch, numbers)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    trainable = parts.trainable(state.model)
    updates, opt_state = parts.optimiser.update(grads, state.opt_state, eqx.filter(state.model, trainable))
    model = eqx.apply_updates(state.model, updates)
    ema = state.ema
    if ema is not None and parts.ema_rate is not None:
        moved = ema_update(eqx.filter(ema, trainable), eqx.filter(model, trainable), parts.ema_rate)
        ema = eqx.combine(moved, ema)
    model, ema, opt_state = _where(finite, (model, ema, opt_state), (state.model, state.ema, state.opt_state))

    lr = jnp.asarray(parts.schedule(state.step - state.skipped))  # skipped steps do not move the schedule
    skipped = 1 - finite.astype(jnp.int32)
    state = TrainState(state.step + 1, model, ema, opt_state, state.skipped + skipped)
    own = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "skipped": skipped, "skipped_total": state.skipped}
    return place(state, replicated(parts.mesh)), metrics | own


def loss_and_grads(
    parts: Parts, model: eqx.Module, batch: Batch, numbers: PyTree
) -> tuple[tuple[Scalar, Metrics], PyTree]:
    """((loss, its parts), gradients) of a whole batch, in `parts.accumulate` micro-batches one after the other.

    The gradients are a PyTree of the model's structure, with None for what is not `parts.trainable`.
    The loss is a mean over images and the micro-batches are alike, so that their mean is the loss of the whole.
    """
    trained, frozen = eqx.partition(model, parts.trainable(model))

    @eqx.filter_value_and_grad(has_aux=True)
    def value_and_grad(trained: eqx.Module, batch: Batch, numbers: PyTree) -> tuple[Scalar, Metrics]:
        return parts.objective.loss(eqx.combine(trained, frozen), parts.path, batch, numbers)

    if parts.accumulate == 1:
        return value_and_grad(trained, batch, numbers)
    period = parts.objective.period(batch.image.shape[0])
    cut = micro_batches((batch, numbers), parts.accumulate, period)

    def add(total: PyTree, part: tuple[Batch, PyTree]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(trained, *part)), None

    first, rest = jax.tree.map(lambda leaf: leaf[0], cut), jax.tree.map(lambda leaf: leaf[1:], cut)
    total, _ = jax.lax.scan(add, value_and_grad(trained, *first), rest)
    return jax.tree.map(lambda leaf: leaf / parts.accumulate, total)


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    # Fused into the update by the compiler: it reads both anyway.
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)
