"""The optimiser of every recipe: AdamW with warm-up and cosine, and the average of the weights."""

import dataclasses
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from umd_eqx.errors import BadInput

UNDECAYED = frozenset({"bias", "class_tokens", "registers", "mask_token"})
"""Parameters that the reference does not decay. Scales and positions are decayed."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW, and for how long."""

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
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on everything but biases, class tokens and mask embedding."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the first moment is kept in."""
    accumulate: int = 1
    """Micro-batches a step: less memory, the same gradient."""

    def validate(self) -> None:
        """Raises `BadInput` for values that cannot work."""
        if (self.epochs is None) == (self.steps is None):
            raise BadInput("--optim.epochs", "give either epochs or steps", "Set the other one to None")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"--optim.{name}", f"{getattr(self, name)} is not positive", "Use a positive number")
        for name in ("warmup", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"--optim.{name}", f"{getattr(self, name)} is outside [0, 1)", "Use a share below 1")
        if not 0 <= self.weight_decay < math.inf:
            problem = f"{self.weight_decay} is {'negative' if self.weight_decay < 0 else 'no finite number'}"
            raise BadInput("--optim.weight-decay", problem, "Use 0 or more")
        for name in ("epochs", "steps", "accumulate", "lr_batch_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                flag = f"--optim.{name.replace('_', '-')}"
                raise BadInput(flag, f"{value} is not positive", "Use a positive number")


def horizon(config: OptimConfig, num_train: int, batch_size: int) -> tuple[int, int]:
    """(warm-up steps, all steps) of a run over `num_train` images, as the reference counts them."""
    if config.epochs is not None:
        warmup_epochs = int(config.warmup * config.epochs)
        return warmup_epochs * num_train // batch_size, round(config.epochs * num_train / batch_size)
    assert config.steps is not None
    return int(config.warmup * config.steps), config.steps


def schedule(config: OptimConfig, num_train: int, batch_size: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak, cosine to 0, then 0."""
    warmup, total = horizon(config, num_train, batch_size)
    scale = 1.0 if config.lr_batch_size is None else batch_size / config.lr_batch_size
    return optax.warmup_cosine_decay_schedule(0.0, config.lr * scale, warmup, max(total, warmup + 1))


def decayed(params: PyTree) -> PyTree:
    """True for each parameter that weight decay applies to, as in the reference."""

    def is_decayed(path: tuple[jax.tree_util.KeyEntry, ...], _: jax.Array) -> bool:
        return not UNDECAYED & {getattr(entry, "name", None) for entry in path}

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def adamw(config: OptimConfig, lr: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled decay, learning rate: in this order, as the reference."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.beta1, config.beta2, eps=1e-8, mu_dtype=jnp.dtype(config.mu_dtype)),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(lr),
    )


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
