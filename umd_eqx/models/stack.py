"""A stack of transformer blocks, scanned or unrolled, with a choice of what the backward pass keeps."""

from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from umd_eqx.models.conditioning import AbstractConditioning
from umd_eqx.models.layers import Block, LayerNorm
from umd_eqx.types import Tokens

Remat = Literal["none", "dots", "full"]
"""What the backward pass recomputes: nothing; all but products with a weight; everything (the published setting)."""


class Stack(eqx.Module):
    """`depth` blocks of one shape and the LayerNorm after them.

    The blocks are one PyTree with a leading axis of the depth. Scanned, the compiler sees one block and compiles in
    seconds; unrolled, it sees them all.
    """

    blocks: Block
    conditioning: AbstractConditioning
    norm: LayerNorm
    scan: bool = eqx.field(static=True)
    remat: Remat = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        width: int,
        depth: int,
        heads: int,
        conditioning: AbstractConditioning,
        *,
        scan: bool,
        remat: Remat,
        key: PRNGKeyArray,
    ) -> "Stack":
        """Fresh blocks, with a conditioning made for as many."""
        blocks = eqx.filter_vmap(lambda k: Block.init(width, heads, key=k))(jax.random.split(key, depth))
        return cls(blocks, conditioning, LayerNorm.init(width), scan, remat)

    def __call__(self, x: Tokens, c: Float[Array, "condition"]) -> Tokens:
        """The tokens after all blocks and the last LayerNorm."""
        signal = self.conditioning.prepare(c)
        arrays, static = eqx.partition((self.blocks, self.conditioning.layers), eqx.is_array)

        def step(x: Tokens, layer_arrays: PyTree) -> tuple[Tokens, None]:
            block, layer = eqx.combine(layer_arrays, static)
            return self.conditioning.apply(block, layer, signal, x), None

        step = _rematerialised(step, self.remat, scan=self.scan)
        if self.scan:
            x, _ = jax.lax.scan(step, x, arrays)
        else:
            for i in range(self.blocks.norm1.scale.shape[0]):
                x, _ = step(x, jax.tree.map(lambda leaf, i=i: leaf[i], arrays))
        return self.norm(x)


def _rematerialised(step, remat: Remat, *, scan: bool):
    # Inside a scan the compiler cannot merge the two computations of a value, so nothing needs to hold it back.
    if remat == "none":
        return step
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(step, policy=policy, prevent_cse=not scan)
