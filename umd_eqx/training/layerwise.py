"""Layer-wise learning rates: the earlier a layer of a pre-trained network, the less it is changed."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput
from umd_eqx.training.optim import is_stacked, names_of

LAST = ("head", "norm")
"""Attributes of a network after its blocks: the classifier, and the last normalisation of a stack."""


def layer_rates(params: PyTree, decay: float) -> PyTree:
    """Returns the factor of the learning rate of each parameter (Clark et al. 2020; Bao et al. 2022, BEiT).

    With blocks 0 .. L - 1, the factor is 1 for the head and the last normalisation, `decay` ** (L - i) for block i, and
    `decay` ** (L + 1) for everything before the blocks, as in MAE's fine-tuning. The factors of stacked blocks are an
    array that broadcasts against the stacked leaf.

    **Raises:** `BadInput` naming `optim.layer_decay` for a network without stacked blocks, or with two stacks of
    different depth.
    """
    stacked = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if is_stacked(path)]
    depths = {leaf.shape[0] for leaf in stacked}
    if len(depths) != 1:
        problem = "the network has no blocks" if not depths else "the network has stacks of different depth"
        raise BadInput("optim.layer_decay", problem, "Use 1")
    (depth,) = depths
    blocks = decay ** (depth - jnp.arange(depth, dtype=jnp.float32))

    def rate(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        if is_stacked(path):
            return blocks.reshape(-1, *[1] * (leaf.ndim - 1))
        return 1.0 if set(LAST) & set(names_of(path)) else decay ** (depth + 1)

    return jax.tree_util.tree_map_with_path(rate, params)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Returns the transformation that multiplies each update by its factor (`layer_rates`)."""

    def update(updates: PyTree, state: optax.OptState, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        return jax.tree.map(lambda u, rate: u * rate, updates, layer_rates(updates, decay)), state

    def init(params: PyTree) -> optax.OptState:
        layer_rates(params, decay)  # raises for a network that it does not fit, before the first step
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)
