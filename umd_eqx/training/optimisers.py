"""The optimisers: AdamW, as in the published recipes, Muon and LARS."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput
from umd_eqx.training.layerwise import scale_by_layer
from umd_eqx.training.optim import (
    NO_DECAY,
    AbstractOptimiser,
    decayed,
    is_stacked,
    names_of,
    require_positive,
    require_shares,
)

MATRICES = ("kernel", "weight")
"""Attribute names of the matrix of a linear layer, here and in `equinox.nn`."""


@dataclasses.dataclass(frozen=True)
class AdamW(AbstractOptimiser):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), the optimiser of every published recipe."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the first moment."""
    layer_decay: float = 1.0
    """Ratio of the learning rates of a block and the next, for fine-tuning a pre-trained classifier. 1: all equal."""

    def transformation(self, lr: optax.Schedule) -> optax.GradientTransformation:
        """Returns clipping, Adam, decoupled weight decay and learning rate, in this order, as in the reference.

        With a `layer_decay`, updates including weight decay are scaled by layer last (`layerwise.layer_rates`).
        """
        layers = [] if self.layer_decay == 1 else [scale_by_layer(self.layer_decay)]
        return optax.chain(optax.clip_by_global_norm(self.clip), *_adamw(self, lr), *layers)

    def validate(self) -> None:
        """Raises `BadInput` for invalid values."""
        super().validate()
        require_shares(self, "beta1", "beta2")
        if not 0 < self.layer_decay <= 1:
            problem = f"{self.layer_decay} is outside (0, 1]"
            raise BadInput("optim.layer_decay", problem, "Use 1 for equal rates, or a ratio such as 0.75")


@dataclasses.dataclass(frozen=True)
class Muon(AbstractOptimiser):
    """Momentum orthogonalised layer by layer for the matrices of the blocks, AdamW for all other parameters.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. The matrices of the blocks are the leaves named
    `kernel` or `weight` under an attribute `blocks` (`orthogonalised`). As in that publication, embeddings, positions,
    tokens, heads, modulation and all vectors are updated by AdamW. Queries, keys and values are one matrix.

    The update of an a x b matrix is scaled by `rms` sqrt(max(a, b)), which makes its root mean square `rms`, close to
    that of AdamW's updates (Liu et al. 2025, arXiv 2502.16982, section 2.2): the learning rate and the weight decay of
    an AdamW recipe then suit both groups. With `rms` None, the scale is sqrt(max(1, b / a)), as in the first
    publication, and `lr` applies to the matrices alone; the values there were 0.02, and 3e-4 for `adam_lr`.
    """

    momentum: float = 0.95
    """Decay of the Nesterov momentum of the matrices."""
    rms: float | None = 0.2
    """Root mean square of a matrix's update before the learning rate. None: scaled by the shape of the matrix."""
    ns_steps: int = 5
    """Number of Newton-Schulz iterations of the orthogonalisation."""
    adam_lr: float | None = None
    """Peak learning rate of the parameters under AdamW, scaled like `lr`. None: the same as `lr`."""
    beta1: float = 0.9
    """Decay of the first moment of the parameters under AdamW."""
    beta2: float = 0.95
    """Decay of the second moment of the parameters under AdamW."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the momentum and the first moment."""

    def transformation(self, lr: optax.Schedule) -> optax.GradientTransformation:
        """Returns clipping by the global norm, then the update rule, decay and learning rate of each group.

        The transformation's `init` raises `BadInput` naming `optim` for parameters without a matrix to orthogonalise.
        """
        share = 1.0 if self.adam_lr is None else self.adam_lr / self.lr
        matrices = optax.contrib.muon(
            lr,
            ns_steps=self.ns_steps,
            beta=self.momentum,
            weight_decay=self.weight_decay,
            mu_dtype=jnp.dtype(self.mu_dtype),
            muon_weight_dimension_numbers=orthogonalised,
            consistent_rms=self.rms,
        )
        rest = optax.chain(*_adamw(self, lambda count: lr(count) * share))
        return optax.chain(
            optax.clip_by_global_norm(self.clip), optax.partition({"muon": matrices, "adamw": rest}, _groups)
        )

    def validate(self) -> None:
        """Raises `BadInput` for invalid values."""
        super().validate()
        require_shares(self, "momentum", "beta1", "beta2")
        require_positive(self, "rms", "ns_steps", "adam_lr")


@dataclasses.dataclass(frozen=True)
class LARS(AbstractOptimiser):
    """Momentum with layer-wise learning rates, proportional to the norm of each layer's weights (You et al. 2017).

    The defaults are those of MAE's linear probes (He et al. 2022, table 10: `lr` 0.1 for 256 images, no decay). Biases,
    the scales of normalisations and other parameters without weight decay use the plain learning rate. The norm of an
    update is `trust` times the norm of the layer's weights, and `lr` is several hundred times that of AdamW.
    """

    lr: float = 0.1
    """Peak learning rate for a batch size of `lr_batch_size`."""
    weight_decay: float = 0.0
    """Weight decay, added to the gradient before its norm is taken, of all parameters except biases and scales."""
    momentum: float = 0.9
    """Decay of the momentum."""
    trust: float = 1e-3
    """Trust coefficient: ratio of the norms of a layer's update and of its weights, before the learning rate."""

    def transformation(self, lr: optax.Schedule) -> optax.GradientTransformation:
        """Returns clipping, weight decay, layer-wise trust ratio, learning rate and momentum, as in `optax.lars`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.add_decayed_weights(self.weight_decay, mask=_adapted),
            optax.masked(_layer_by_layer(optax.scale_by_trust_ratio(trust_coefficient=self.trust)), _adapted),
            optax.scale_by_learning_rate(lr),
            optax.trace(self.momentum),
        )

    def validate(self) -> None:
        """Raises `BadInput` for invalid values."""
        super().validate()
        require_shares(self, "momentum")
        require_positive(self, "trust")


OPTIMISERS: Mapping[str, Callable[[], AbstractOptimiser]] = {
    "adamw": AdamW,
    "muon": Muon,
    # A learning rate or weight decay chosen for another optimiser does not suit LARS.
    "lars": functools.partial(LARS, lr=LARS.lr, weight_decay=LARS.weight_decay),
}
"""The optimisers by the name that `--optim` takes. Values fixed here are not taken from the recipe's optimiser."""


def orthogonalised(params: PyTree) -> PyTree:
    """Returns the `MuonDimensionNumbers` of each matrix of a block, with the depth of stacked blocks as a batch axis.

    They are None for every other parameter and for kernels of convolutions.
    """
    return jax.tree_util.tree_map_with_path(_dimensions, params)


def _dimensions(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    names, stacked = names_of(path), is_stacked(path)
    if "blocks" not in names or names[-1] not in MATRICES or leaf.ndim != 2 + stacked:
        return None
    return optax.contrib.MuonDimensionNumbers(0 + stacked, 1 + stacked)


def _groups(params: PyTree) -> PyTree:
    groups = jax.tree_util.tree_map_with_path(lambda *leaf: "muon" if _dimensions(*leaf) else "adamw", params)
    if "muon" not in jax.tree.leaves(groups):
        problem = "the network has no blocks with matrices for muon to orthogonalise"
        raise BadInput("optim", problem, "Use adamw")
    return groups


def _adamw(config: AdamW | Muon, lr: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        optax.scale_by_adam(config.beta1, config.beta2, eps=1e-8, mu_dtype=jnp.dtype(config.mu_dtype)),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(lr),
    ]


def _adapted(params: PyTree) -> PyTree:
    plain = NO_DECAY | {"scale"}
    return jax.tree_util.tree_map_with_path(lambda path, _: not plain & set(names_of(path)), params)


def _layer_by_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a stateless transformation to each layer of a stacked leaf separately."""

    def update(updates: PyTree, state: optax.OptState, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        def layer(gradient: jax.Array, weights: jax.Array) -> Any:
            return rule.update(gradient, state, weights)[0]

        def one(path: tuple[Any, ...], gradient: jax.Array, weights: jax.Array) -> Any:
            return (jax.vmap(layer) if is_stacked(path) else layer)(gradient, weights)

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(rule.init, update)
