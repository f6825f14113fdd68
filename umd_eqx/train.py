"""One training step, as a pure function of its state and a batch."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree

from umd_eqx.objectives import AbstractObjective
from umd_eqx.optim import ema_update
from umd_eqx.paths import AbstractPath
from umd_eqx.sharding import micro_batches, place, replicated
from umd_eqx.types import Batch, Metrics, Scalar


class TrainState(eqx.Module):
    """Everything that changes in training, and all that a checkpoint holds. The model is whatever the objective trains.

    No key: a step's key is made of the seed and `step`. `skipped` counts the steps whose loss or gradient was not
    finite and which changed nothing else.
    """

    step: Int[Array, ""]
    model: eqx.Module
    ema: eqx.Module | None
    opt_state: PyTree
    skipped: Int[Array, ""]

    @classmethod
    def init(cls, model: eqx.Module, optimiser: optax.GradientTransformation, *, ema: bool) -> "TrainState":
        """The state before the first step; the average starts as a copy of the weights."""
        params = eqx.filter(model, eqx.is_inexact_array)
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


def train_step(parts: Parts, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """One update, compiled. The batch is sharded over the devices; the state is a copy on each, and is donated.

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

    params = eqx.filter(state.model, eqx.is_inexact_array)
    updates, opt_state = parts.optimiser.update(grads, state.opt_state, params)
    model = eqx.apply_updates(state.model, updates)
    ema = state.ema
    if ema is not None and parts.ema_rate is not None:
        ema = ema_update(ema, model, parts.ema_rate)
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

    The loss is a mean over images and the micro-batches are alike, so that their mean is the loss of the whole.
    """

    @eqx.filter_value_and_grad(has_aux=True)
    def value_and_grad(model: eqx.Module, batch: Batch, numbers: PyTree) -> tuple[Scalar, Metrics]:
        return parts.objective.loss(model, parts.path, batch, numbers)

    if parts.accumulate == 1:
        return value_and_grad(model, batch, numbers)
    period = parts.objective.period(batch.image.shape[0])
    cut = micro_batches((batch, numbers), parts.accumulate, period)

    def add(total: PyTree, part: tuple[Batch, PyTree]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(model, *part)), None

    first, rest = jax.tree.map(lambda leaf: leaf[0], cut), jax.tree.map(lambda leaf: leaf[1:], cut)
    total, _ = jax.lax.scan(add, value_and_grad(model, *first), rest)
    return jax.tree.map(lambda leaf: leaf / parts.accumulate, total)


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    # Fused into the update by the compiler: it reads both anyway.
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)
