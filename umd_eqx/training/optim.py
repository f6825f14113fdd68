"""What all optimisers share: the schedule, the selection for weight decay, and the moving average of the weights."""

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

NO_DECAY = frozenset({"bias", "class_tokens", "registers", "mask_token"})
"""Parameters without weight decay, as in the reference. Scales and position embeddings are decayed."""

STACKED = ("blocks", "layers")
"""Attributes of a network whose leaves have a leading depth axis."""

UNCLIPPED = 1e6
"""A maximum gradient norm that is never reached, for recipes that do not clip gradients."""


@dataclasses.dataclass(frozen=True)
class AbstractOptimiser(abc.ABC):
    """The optimiser and the length of training. `umd_eqx.training.optimisers` has those of this package."""

    lr: float = 1.5e-4
    """Peak learning rate for a batch size of `lr_batch_size`."""
    lr_batch_size: int | None = 256
    """Batch size that `lr` is given for; the learning rate scales linearly with the batch size. None: no scaling."""
    epochs: float | int | None = None
    """Length of training in epochs. Give either this or `steps`."""
    steps: int | None = None
    """Length of training in steps."""
    warmup: float = 0.05
    """Fraction of the run with linear learning rate warm-up from 0 (rounded down to whole epochs if `epochs` is
    given)."""
    weight_decay: float = 0.05
    """Decoupled weight decay of all parameters except biases, class tokens, registers and the mask token."""
    clip: float = 1.0
    """Maximum global norm of the gradient; larger gradients are scaled down."""
    accumulate: int = 1
    """Micro-batches per step. Gradient accumulation saves memory and leaves the gradient unchanged."""

    @abc.abstractmethod
    def transformation(self, lr: optax.Schedule) -> optax.GradientTransformation:
        """Returns the optax transformation of gradients into updates.

        **Arguments:**

        - `lr`: the learning rate at each step, as returned by `schedule`.

        The parameters are the floating-point array leaves of the model, with None for all other leaves. A leaf with a
        leading depth axis (`is_stacked`) holds the parameters of all layers.
        """

    def validate(self) -> None:
        """Raises `BadInput` for invalid values."""
        if (self.epochs is None) == (self.steps is None):
            raise BadInput("optim.epochs", "give either epochs or steps", "Set the other one to None")
        require_positive(self, "lr", "clip")
        require_shares(self, "warmup")
        if not 0 <= self.weight_decay < math.inf:
            problem = f"{self.weight_decay} is {'negative' if self.weight_decay < 0 else 'not a finite number'}"
            raise BadInput("optim.weight_decay", problem, "Use 0 or more")
        require_positive(self, "epochs", "steps", "accumulate", "lr_batch_size")


def require_positive(config: AbstractOptimiser, *names: str) -> None:
    """Raises `BadInput` for the first of these fields that is neither None nor a positive finite number."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"optim.{name}", f"{value} is not positive", "Use a positive number")


def require_shares(config: AbstractOptimiser, *names: str) -> None:
    """Raises `BadInput` for the first of these fields that is outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            problem = f"{getattr(config, name)} is outside [0, 1)"
            raise BadInput(f"optim.{name}", problem, "Use a share below 1")


def horizon(config: AbstractOptimiser, num_train: int, batch_size: int) -> tuple[int, int]:
    """Returns (warm-up steps, total steps) of a run over `num_train` images, counted as in the reference."""
    if config.epochs is not None:
        warmup_epochs = int(config.warmup * config.epochs)
        return warmup_epochs * num_train // batch_size, round(config.epochs * num_train / batch_size)
    assert config.steps is not None
    return int(config.warmup * config.steps), config.steps


def schedule(config: AbstractOptimiser, num_train: int, batch_size: int) -> optax.Schedule:
    """Returns the learning rate at each step: linear from 0 to the peak, cosine decay to 0, then 0."""
    warmup, total = horizon(config, num_train, batch_size)
    scale = 1.0 if config.lr_batch_size is None else batch_size / config.lr_batch_size
    return optax.warmup_cosine_decay_schedule(0.0, config.lr * scale, warmup, max(total, warmup + 1))


def decayed(params: PyTree) -> PyTree:
    """Returns a PyTree of bools, True for each parameter that weight decay applies to, as in the reference."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not NO_DECAY & set(names_of(path)), params)


def names_of(path: tuple[Any, ...]) -> list[str | None]:
    """Returns the attribute names on the path to a leaf; None for an index or a dictionary key."""
    return [getattr(entry, "name", None) for entry in path]


def is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether the leaf at this path has a leading depth axis, like the blocks of a `Stack` and their conditioning.

    In a list of blocks, each layer has its own leaves without such an axis.
    """
    names = names_of(path)
    return any(name in STACKED and following is not None for name, following in itertools.pairwise([*names, ""]))


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """The exponential moving average of the weights, which generation uses."""

    rate: float | None = 1e-4
    """Update rate, 1 - decay, of the moving average per step, for a batch size of `batch_size`. None: no average."""
    batch_size: int | None = 256
    """Batch size that `rate` is given for; the rate scales linearly with the batch size. None: no scaling."""
    only_with_labels: bool = False
    """Whether to keep an average only when training with labels (as published)."""

    def rate_for(self, batch_size: int, *, labels: bool) -> float | None:
        """Returns the rate for a batch size, or None if no average is kept. Raises `BadInput` if outside (0, 1]."""
        if self.rate is None or (self.only_with_labels and not labels):
            return None
        rate = self.rate if self.batch_size is None else self.rate * batch_size / self.batch_size
        if not 0 < rate <= 1:
            raise BadInput("ema.rate", f"{rate} a step is outside (0, 1]", "Use a small positive number such as 1e-3")
        return rate


def ema_update(average: PyTree, model: PyTree, rate: float) -> PyTree:
    """Returns average + rate * (weights - average); leaves that are not floating-point arrays are the model's."""
    old, _ = eqx.partition(average, eqx.is_inexact_array)
    new, rest = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(optax.incremental_update(new, old, rate), rest)
