"""Published weights in our network: the reference's parameter naming, read from its shapes alone."""

import re
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from umd_eqx.errors import BadInput
from umd_eqx.models.autoencoder import AutoEncoder, Condition, Head, Trunk
from umd_eqx.models.conditioning import AdaLNZero, Token
from umd_eqx.models.layers import Attention, Block, LayerNorm, Linear, Mlp
from umd_eqx.models.stack import Remat, Stack

Params = Mapping[str, np.ndarray]

T = TypeVar("T")
_SCANNED = "{stack}/ScanCheckpointEncoder1DBlock_0"


def from_reference(
    params: Params, *, labels: bool = True, scan: bool = True, remat: Remat = "dots", dtype: str = "float32"
) -> AutoEncoder:
    """The network that a flat dictionary of the reference's parameters describes.

    **Arguments:**

    - `params`: arrays by the reference's names, levels joined by "/": `embedding/kernel`,
      `Encoder/Encoder1DBlock_0/...` or, scanned, `Encoder/ScanCheckpointEncoder1DBlock_0/...` with a leading axis of
      the depth. Width, depths, heads, patch, channels, number of patches and classes are read from the shapes; images
      are square, as in the reference. AdaLN where `final_modulation` is there, else the token.
    - `labels`: False leaves the label table out, although the file has one.
    - `scan`, `remat`, `dtype`: as in `ModelConfig`.

    Raises `BadInput` naming the first parameter that is missing or does not fit.
    """
    tree = _Reader(params)
    patch, _, channels, width = tree.array("embedding/kernel", 4).shape
    positions = tree.array("pos_embedding", 3)[0]
    side = round(positions.shape[0] ** 0.5) * patch
    if (side // patch) ** 2 != positions.shape[0]:
        raise BadInput("pos_embedding", f"{positions.shape[0]} patches are not a square", "Use square images")
    adaln = "final_modulation/kernel" in params
    has_labels = labels and "label_emb/embedding/embedding" in params
    head = tree.array("final_conv/kernel", 4)  # patch patch d 2c, flipped in space by the transposed convolution
    return AutoEncoder(
        embed=Linear(tree.array("embedding/kernel", 4).reshape(-1, width), tree.array("embedding/bias", 1)),
        positions=positions,
        class_tokens=tree.array("cls", 3)[0],
        condition=_condition(tree, has_labels),
        encoder=_stack(tree, "Encoder", adaln=adaln, scan=scan, remat=remat),
        bridge=None,
        mask_token=tree.array("image_mask_embedding", 3)[0, 0],
        decoder_positions=tree.array("dec_pos_embedding", 3)[0],
        decoder=_stack(tree, "Decoder", adaln=adaln, scan=scan, remat=remat),
        head=Head(
            modulation=tree.linear("final_modulation") if adaln else None,
            kernel=head[::-1, ::-1].transpose(2, 0, 1, 3).reshape(width, -1),
            bias=tree.array("final_conv/bias", 1),
        ),
        image_shape=(side, side, channels),
        patch=patch,
        num_patches=positions.shape[0],
        num_classes=tree.array("label_emb/embedding/embedding", 2).shape[0] - 1 if has_labels else None,
        dtype=dtype,
    )


class _Reader:
    """Looks parameters up by name, in float32, with a clear word for what is missing."""

    def __init__(self, params: Params):
        self.params = params

    def array(self, name: str, ndim: int) -> Float[Array, "..."]:
        if name not in self.params:
            raise BadInput(name, "is not among the parameters", "Pass a file in the reference's naming, unchanged")
        value = jnp.asarray(self.params[name], jnp.float32)
        if value.ndim != ndim:
            raise BadInput(name, f"has shape {value.shape}, not {ndim} axes", "Pass the reference's own array")
        return value

    def linear(self, name: str) -> Linear:
        return Linear(self.array(f"{name}/kernel", 2), self.array(f"{name}/bias", 1))

    def depth(self, stack: str) -> int:
        """How many blocks a stack has, in either way of storing them."""
        scanned = f"{_SCANNED.format(stack=stack)}/LayerNorm_0/scale"
        if scanned in self.params:
            return self.array(scanned, 2).shape[0]
        pattern = re.compile(re.escape(stack) + r"/Encoder1DBlock_(\d+)/")
        return 1 + max((int(match[1]) for match in map(pattern.match, self.params) if match), default=0)

    def layer(self, stack: str, i: int, name: str, ndim: int) -> Array:
        """A parameter of block `i`."""
        scanned = f"{_SCANNED.format(stack=stack)}/{name}"
        if scanned in self.params:
            return self.array(scanned, ndim + 1)[i]
        return self.array(f"{stack}/Encoder1DBlock_{i}/{name}", ndim)


def _condition(tree: _Reader, has_labels: bool) -> Condition:
    time = Trunk(tree.linear("time_trunk/Dense_0"), tree.linear("time_trunk/Dense_1"))
    if not has_labels:
        return Condition(time, None, None)
    label = Trunk(tree.linear("label_trunk/Dense_0"), tree.linear("label_trunk/Dense_1"))
    return Condition(time, tree.array("label_emb/embedding/embedding", 2), label)


def _stack(tree: _Reader, stack: str, *, adaln: bool, scan: bool, remat: Remat) -> Stack:
    depth = tree.depth(stack)
    blocks = _stacked([_block(tree, stack, i) for i in range(depth)])
    modulations = [_layer(tree, stack, i, "Dense_0") for i in range(depth)] if adaln else []
    return Stack(
        blocks=blocks,
        conditioning=AdaLNZero(_stacked(modulations)) if adaln else Token(),
        norm=LayerNorm(tree.array(f"{stack}/encoder_norm/scale", 1), tree.array(f"{stack}/encoder_norm/bias", 1)),
        scan=scan,
        remat=remat,
    )


def _stacked(modules: list[T]) -> T:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)


def _layer(tree: _Reader, stack: str, i: int, name: str) -> Linear:
    return Linear(tree.layer(stack, i, f"{name}/kernel", 2), tree.layer(stack, i, f"{name}/bias", 1))


def _block(tree: _Reader, stack: str, i: int) -> Block:
    def norm(name: str) -> LayerNorm:
        return LayerNorm(tree.layer(stack, i, f"{name}/scale", 1), tree.layer(stack, i, f"{name}/bias", 1))

    def attention(name: str, ndim: int) -> Array:
        return tree.layer(stack, i, f"MultiHeadDotProductAttention_0/{name}", ndim)

    parts = ("query", "key", "value")
    kernels = [attention(f"{part}/kernel", 3) for part in parts]  # inputs heads head_dim
    width, heads, _ = kernels[0].shape
    qkv = Linear(
        jnp.concatenate([kernel.reshape(width, -1) for kernel in kernels], axis=1),
        jnp.concatenate([attention(f"{part}/bias", 2).reshape(-1) for part in parts]),
    )
    out = Linear(attention("out/kernel", 3).reshape(-1, width), attention("out/bias", 1))
    mlp = Mlp(_layer(tree, stack, i, "MlpBlock_0/Dense_0"), _layer(tree, stack, i, "MlpBlock_0/Dense_1"))
    return Block(norm("LayerNorm_0"), Attention(qkv, out, heads), norm("LayerNorm_1"), mlp)
