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
from umd_eqx.core.sharding import micro_batches
from umd_eqx.core.types import Batch, Metrics, Scalar
from umd_eqx.objectives import AbstractObjective
from umd_eqx.training.layout import Layout
from umd_eqx.training.optim import ema_update
from umd_eqx.training.trainable import EVERYTHING

Trainable = Callable[[PyTree], PyTree]
"""Returns a bool for each leaf of a model, True if it is trained; see `umd_eqx.training.trainable.AbstractTrainable`.

It must depend on the structure of the model alone: the same leaves are then selected at every step.
"""


class TrainState(eqx.Module):
    """The training state, which is also the content of a checkpoint.

    The model is whatever the objective trains, including its frozen parts. There is no key: the key of a step is
    derived from the seed and `step`. `skipped` counts the steps whose loss or gradient was not finite, which do not
    update the model, the average or the optimiser state.
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
        """Returns the state before the first step, with a copy of the weights as the moving average.

        The optimiser state covers the `trainable` parameters only.
        """
        params = eqx.filter(model, trainable(model))
        average = jax.tree.map(lambda leaf: jnp.array(leaf) if eqx.is_array(leaf) else leaf, model) if ema else None
        return cls(jnp.zeros((), jnp.int32), model, average, optimiser.init(params), jnp.zeros((), jnp.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """The constant parts of a training step, which are static under `jit`."""

    objective: AbstractObjective
    path: AbstractPath
    optimiser: optax.GradientTransformation
    schedule: optax.Schedule
    mesh: Mesh
    seed: int
    ema_rate: float | None = None
    accumulate: int = 1
    trainable: Trainable = EVERYTHING
    """The trained parameters: gradients, their norm, the optimiser and the moving average cover these only."""

    @property
    def layout(self) -> Layout:
        """Where the arrays of the state lie."""
        return Layout(self.mesh)


def train_step(parts: Parts, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Performs one compiled update of the state, which lies as in `parts.layout` and is donated. The batch is divided.

    Parameters that are not `parts.trainable` are bitwise unchanged, in the model and in its average.

    The metrics are scalars by name: the loss and its parts, `grad_norm` before clipping, `lr`, and `skipped`, which is
    1 if the loss or the gradient was not finite. In that case, only `step` and the count of such steps,
    `skipped_total`, are updated.
    """
    return _update((parts, batch), state)


def compile_step(parts: Parts, state: PyTree, batch: PyTree) -> Any:
    """Returns the compiled step, for `.compiled.memory_analysis()` or repeated calls with `((parts, batch), state)`."""
    return _update.lower((parts, batch), state).compile()  # pyright: ignore[reportFunctionMemberAccess]


# The first argument is not donated: no output could reuse the memory of the batch.
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

    lr = jnp.asarray(parts.schedule(state.step - state.skipped))  # skipped steps do not advance the schedule
    skipped = 1 - finite.astype(jnp.int32)
    state = TrainState(state.step + 1, model, ema, opt_state, state.skipped + skipped)
    own = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "skipped": skipped, "skipped_total": state.skipped}
    return parts.layout.place(state), metrics | own


def loss_and_grads(
    parts: Parts, model: eqx.Module, batch: Batch, numbers: PyTree
) -> tuple[tuple[Scalar, Metrics], PyTree]:
    """Returns ((loss, its parts), gradients) of a batch, accumulated over `parts.accumulate` micro-batches.

    The gradients are a PyTree with the structure of the model, with None for leaves that are not `parts.trainable`. The
    loss is a mean over images and the micro-batches have equal composition: the mean of their losses is the batch's.
    """
    trained, frozen = eqx.partition(model, parts.trainable(model))

    @eqx.filter_value_and_grad(has_aux=True)
    def value_and_grad(trained: eqx.Module, batch: Batch, numbers: PyTree) -> tuple[Scalar, Metrics]:
        model = parts.layout.computing(eqx.combine(trained, frozen))
        return parts.objective.loss(model, parts.path, batch, numbers)

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
    # XLA fuses this into the update, which reads both anyway.
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)
