"""What every optimiser has in common: its schedule, its weight decay, and the average of the weights."""

import abc
import dataclasses
import itertools
import math
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput

UNDECAYED = frozenset({"bias", "class_tokens", "registers", "mask_token"})
"""Parameters that the reference does not decay. Scales and positions are decayed."""

STACKED = ("blocks", "layers")
"""Attributes of a network whose leaves have a leading axis of the depth."""


@dataclasses.dataclass(frozen=True)
class AbstractOptimiser(abc.ABC):
    """How the weights are updated, and for how long. `umd_eqx.training.optimisers` has those of this package."""

    lr: float = 1.5e-4
    """Peak learning rate, for a batch of `lr_batch_size` images."""
    lr_batch_size: int | None = 256
    """The learning rate grows in proportion to the batch from here. None: `lr` is the peak for any batch."""
    epochs: float | int | None = None
    """How long to train, in passes over the data. Give this or `steps`."""
    steps: int | None = None
    """How long to train, in steps."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises from 0 (of whole epochs, where `epochs` is given)."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on everything but biases, class tokens and mask embedding."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    accumulate: int = 1
    """Micro-batches a step: less memory, the same gradient."""

    @abc.abstractmethod
    def transformation(self, lr: optax.Schedule) -> optax.GradientTransformation:
        """The chain of optax that turns gradients into updates.

        **Arguments:**

        - `lr`: learning rate by step, as `schedule` makes it.

        The parameters are those leaves of the model that are floating-point arrays, with None for the others. A leaf
        with a leading axis of the depth (`is_stacked`) holds the parameters of that many layers.
        """

    def validate(self) -> None:
        """Raises `BadInput` for values that cannot work."""
        if (self.epochs is None) == (self.steps is None):
            raise BadInput("--optim.epochs", "give either epochs or steps", "Set the other one to None")
        require_positive(self, "lr", "clip")
        require_shares(self, "warmup")
        if not 0 <= self.weight_decay < math.inf:
            problem = f"{self.weight_decay} is {'negative' if self.weight_decay < 0 else 'not a finite number'}"
            raise BadInput("--optim.weight-decay", problem, "Use 0 or more")
        require_positive(self, "epochs", "steps", "accumulate", "lr_batch_size")


def require_positive(config: AbstractOptimiser, *names: str) -> None:
    """Raises `BadInput` for the first of these fields that is neither None nor a positive finite number."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"--optim.{name.replace('_', '-')}", f"{value} is not positive", "Use a positive number")


def require_shares(config: AbstractOptimiser, *names: str) -> None:
    """Raises `BadInput` for the first of these fields that is outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            problem = f"{getattr(config, name)} is outside [0, 1)"
            raise BadInput(f"--optim.{name.replace('_', '-')}", problem, "Use a share below 1")


def horizon(config: AbstractOptimiser, num_train: int, batch_size: int) -> tuple[int, int]:
    """(warm-up steps, all steps) of a run over `num_train` images, as the reference counts them."""
    if config.epochs is not None:
        warmup_epochs = int(config.warmup * config.epochs)
        return warmup_epochs * num_train // batch_size, round(config.epochs * num_train / batch_size)
    assert config.steps is not None
    return int(config.warmup * config.steps), config.steps


def schedule(config: AbstractOptimiser, num_train: int, batch_size: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak, cosine to 0, then 0."""
    warmup, total = horizon(config, num_train, batch_size)
    scale = 1.0 if config.lr_batch_size is None else batch_size / config.lr_batch_size
    return optax.warmup_cosine_decay_schedule(0.0, config.lr * scale, warmup, max(total, warmup + 1))


def decayed(params: PyTree) -> PyTree:
    """True for each parameter that weight decay applies to, as in the reference."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not UNDECAYED & set(names_of(path)), params)


def names_of(path: tuple[Any, ...]) -> list[str | None]:
    """The attributes that lead to a leaf; None for an index or a key of a dictionary."""
    return [getattr(entry, "name", None) for entry in path]


def is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether a leaf at this path has a leading axis of the depth, as the blocks of a `Stack` and their conditioning.

    In a list of blocks each layer has leaves of its own, which have no such axis.
    """
    names = names_of(path)
    return any(name in STACKED and following is not None for name, following in itertools.pairwise([*names, ""]))


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """The moving average of the weights that generation is done with."""

    rate: float | None = 1e-4
    """How far the average moves toward the weights each step, for a batch of `batch_size`. None: no average is kept."""
    batch_size: int | None = 256
    """The rate grows in proportion to the batch from here. None: `rate` is for any batch."""
    only_with_labels: bool = False
    """Keep an average only where labels are trained with (as published)."""

    def rate_for(self, batch_size: int, *, labels: bool) -> float | None:
        """The rate of a run, or None where it keeps no average. Raises `BadInput` if it is not in (0, 1]."""
        if self.rate is None or (self.only_with_labels and not labels):
            return None
        rate = self.rate if self.batch_size is None else self.rate * batch_size / self.batch_size
        if not 0 < rate <= 1:
            raise BadInput("--ema.rate", f"{rate} a step is outside (0, 1]", "Use a small positive number such as 1e-3")
        return rate


def ema_update(average: PyTree, model: PyTree, rate: float) -> PyTree:
    """The average, moved by `rate` toward the weights; what is no floating-point array is taken from the model."""
    old, _ = eqx.partition(average, eqx.is_inexact_array)
    new, rest = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(optax.incremental_update(new, old, rate), rest)
