"""A stack of transformer blocks, scanned or unrolled, with selectable rematerialisation."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from umd_eqx.models.vit.blocks import Block, BlockConfig
from umd_eqx.models.vit.conditioning import AbstractConditioning
from umd_eqx.models.vit.layers import LayerNorm
from umd_eqx.models.vit.packed import Embedded, Packed

Remat = Literal["none", "dots", "full"]
"""What the backward pass recomputes: nothing, all but products with weights, or everything (as published)."""


def _identity(layer: PyTree) -> PyTree:
    return layer


class Stack(eqx.Module):
    """`depth` blocks of equal shape, followed by a LayerNorm.

    The blocks are one PyTree with a leading axis of the depth. With `scan`, only one block is compiled, in seconds;
    otherwise every block is compiled separately.
    """

    blocks: Block
    conditioning: AbstractConditioning
    norm: LayerNorm
    scan: bool = eqx.field(static=True)
    remat: Remat = eqx.field(static=True)
    on_layer: Callable[[PyTree], PyTree] = eqx.field(static=True, default=_identity)
    """Applied to each layer before it is used: its block, conditioning and factors. See `umd_eqx.training.layout`."""

    @classmethod
    def init(
        cls,
        width: int,
        depth: int,
        heads: int,
        conditioning: AbstractConditioning,
        block: BlockConfig,
        *,
        scan: bool,
        remat: Remat,
        key: PRNGKeyArray,
    ) -> "Stack":
        """Returns freshly initialised blocks; `conditioning` must be initialised for the same depth."""
        blocks = eqx.filter_vmap(lambda k: Block.init(width, heads, block, key=k))(jax.random.split(key, depth))
        return cls(blocks, conditioning, LayerNorm.init(width), scan, remat)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return self.blocks.norm1.scale.shape[0]

    def __call__(self, packed: Packed, c: Embedded, branches: Float[Array, "depth 2"] | None = None) -> Packed:
        """Applies all blocks and the last LayerNorm to the tokens.

        `branches` are factors of the residual branches of each block, attention and MLP. None: 1.
        """
        tokens, _ = self._apply(packed, c, lambda _: None, branches)
        return packed.with_tokens(self.norm(tokens))

    def read_each(self, packed: Packed, c: Embedded, read: Callable[[Packed], PyTree]) -> tuple[Packed, PyTree]:
        """Applies the stack, and also reads the tokens after each block.

        The last LayerNorm is applied to whatever is read, as every block normalises its input. Only the results of
        `read` are kept in memory.

        **Arguments:**

        - `read`: a function of the normalised tokens after a block.

        **Returns:** the result of `__call__`, and the results of `read`, arrays with a leading axis of the depth. The
        last of them is that of `read` on the result of `__call__`.
        """
        tokens, before = self._apply(packed, c, lambda tokens: read(packed.with_tokens(self.norm(tokens))), None)
        result = packed.with_tokens(self.norm(tokens))
        after = jax.tree.map(lambda each, last: jnp.concatenate([each[1:], last[None]]), before, read(result))
        return result, after

    def _apply(
        self, packed: Packed, c: Embedded, read: Callable[[Array], PyTree], branches: Float[Array, "depth 2"] | None
    ) -> tuple[Float[Array, "rows length d"], PyTree]:
        """Returns the tokens after the last block, and the results of `read` before each block, stacked.

        Reading before a block leaves a scanned block as it is compiled without, and so the rounding of its result.
        """
        prepared = self.conditioning.prepare(c)
        arrays, static = eqx.partition((self.blocks, self.conditioning.layers, branches), eqx.is_array)

        def step(tokens: Array, layer_arrays: PyTree) -> tuple[Array, PyTree]:
            block, layer, own = self.on_layer(eqx.combine(layer_arrays, static))
            after = self.conditioning.apply(block, layer, prepared, packed.with_tokens(tokens), own).tokens
            return after, read(tokens)

        step = _rematerialised(step, self.remat, scan=self.scan)
        if self.scan:
            return jax.lax.scan(step, packed.tokens, arrays)
        tokens, found = packed.tokens, []
        for layer_arrays in _unstacked(arrays, self.depth):
            tokens, one = step(tokens, layer_arrays)
            found.append(one)
        return tokens, jax.tree.map(lambda *each: jnp.stack(each), *found)


def _unstacked(arrays: PyTree, depth: int) -> list[PyTree]:
    # One split for all layers, whose gradient is one concatenation. With indexing, the gradient of each layer would be
    # a zero-padded array of the size of the whole stack.
    leaves, structure = jax.tree.flatten(arrays)
    columns = [[x[0] for x in jax.lax.split(leaf, (1,) * depth)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*columns, strict=True)]


def _rematerialised(step, remat: Remat, *, scan: bool):
    # Inside a scan the compiler cannot merge a value with its recomputation, so there is no need to prevent CSE.
    if remat == "none":
        return step
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(step, policy=policy, prevent_cse=not scan)
