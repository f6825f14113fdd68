"""Conversion of published weights in the reference's parameter naming, with all sizes inferred from the shapes."""

import re
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from umd_eqx.core.errors import BadInput
from umd_eqx.models.vit.attention import Attention
from umd_eqx.models.vit.autoencoder import AutoEncoder, Head
from umd_eqx.models.vit.blocks import Block
from umd_eqx.models.vit.conditioning import AdaLNZero, Token
from umd_eqx.models.vit.embedders import CondEmbedder, Trunk
from umd_eqx.models.vit.layers import LayerNorm, Linear, Mlp
from umd_eqx.models.vit.stack import Remat, Stack

Params = Mapping[str, np.ndarray]
Pair = tuple[Array, Array]

_LABELS = "label_emb/embedding/embedding"
_SCANNED = "{stack}/ScanCheckpointEncoder1DBlock_0"


def from_reference(
    params: Params, *, labels: bool = True, scan: bool = True, remat: Remat = "dots", dtype: str = "float32"
) -> AutoEncoder:
    """Returns the network described by a flat dictionary of the reference's parameters.

    **Arguments:**

    - `params`: arrays by the reference's names, levels joined by "/": `embedding/kernel`,
      `Encoder/Encoder1DBlock_0/...` or, scanned, `Encoder/ScanCheckpointEncoder1DBlock_0/...` with a leading axis of
      the depth. Width, depths, heads, patch, channels, number of patches and classes are inferred from the shapes;
      images are square, as in the reference. The conditioning is AdaLN if `final_modulation` is present, otherwise a
      token.
    - `labels`: False omits the label table even if the file has one.
    - `scan`, `remat`, `dtype`: as in `ModelConfig`.

    Raises `BadInput` naming the first parameter that is missing or does not fit.
    """
    tree = _Reader(params)
    patch, _, channels, width = tree.array("embedding/kernel", None, None, None, None).shape
    kernel = tree.array("embedding/kernel", patch, patch, channels, width)
    positions = tree.array("pos_embedding", 1, None, width)[0]
    n = positions.shape[0]
    side = round(n**0.5) * patch
    if (side // patch) ** 2 != n:
        raise BadInput("pos_embedding", f"{n} patches do not form a square grid", "Use square images")
    adaln = "final_modulation/kernel" in params
    has_labels = labels and _LABELS in params
    # Shape (patch, patch, d, 2c), spatially flipped by the transposed convolution.
    head = tree.array("final_conv/kernel", patch, patch, width, 2 * channels)
    return AutoEncoder(
        embed=Linear(kernel.reshape(-1, width), tree.array("embedding/bias", width)),
        positions=positions,
        class_tokens=tree.array("cls", 1, None, width)[0],
        registers=None,
        condition=_condition(tree, width, has_labels),
        encoder=_stack(tree, "Encoder", width, adaln=adaln, scan=scan, remat=remat),
        bridge=None,
        mask_token=tree.array("image_mask_embedding", 1, 1, width)[0, 0],
        decoder_positions=tree.array("dec_pos_embedding", 1, n, width)[0],
        decoder=_stack(tree, "Decoder", width, adaln=adaln, scan=scan, remat=remat),
        head=Head(
            modulation=tree.linear("final_modulation", width, 2 * width) if adaln else None,
            kernel=head[::-1, ::-1].transpose(2, 0, 1, 3).reshape(width, -1),
            bias=tree.array("final_conv/bias", 2 * channels),
        ),
        image_shape=(side, side, channels),
        patch=patch,
        num_patches=n,
        num_classes=tree.array(_LABELS, None, width).shape[0] - 1 if has_labels else None,
        dtype=dtype,
    )


class _Reader:
    """Looks up parameters by name, in float32, with a clear error for those that are missing or do not fit."""

    def __init__(self, params: Params):
        self.params = params

    def array(self, name: str, *shape: int | None) -> Float[Array, "..."]:
        """Returns a parameter of this shape; None matches any length."""
        if name not in self.params:
            problem = "the parameter is missing"
            raise BadInput(name, problem, "Pass an unchanged file in the reference's naming")
        value = jnp.asarray(self.params[name], jnp.float32)
        fits = value.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, value.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            problem = f"the parameter has shape {value.shape}, not ({wanted})"
            raise BadInput(name, problem, "Pass the reference's own array")
        return value

    def linear(self, name: str, inputs: int | None, outputs: int | None) -> Linear:
        kernel = self.array(f"{name}/kernel", inputs, outputs)
        return Linear(kernel, self.array(f"{name}/bias", kernel.shape[1]))

    def depth(self, stack: str) -> int:
        """Returns the number of blocks in a stack, scanned or not."""
        scanned = f"{_SCANNED.format(stack=stack)}/LayerNorm_0/scale"
        if scanned in self.params:
            return self.array(scanned, None, None).shape[0]
        pattern = re.compile(re.escape(stack) + r"/Encoder1DBlock_(\d+)/")
        return 1 + max((int(match[1]) for match in map(pattern.match, self.params) if match), default=0)

    def layers(self, stack: str, name: str, *shape: int | None) -> Array:
        """Returns a parameter of all blocks of a stack, with a leading axis of the depth."""
        scanned = f"{_SCANNED.format(stack=stack)}/{name}"
        depth = self.depth(stack)
        if scanned in self.params:
            return self.array(scanned, depth, *shape)
        return jnp.stack([self.array(f"{stack}/Encoder1DBlock_{i}/{name}", *shape) for i in range(depth)])


def _condition(tree: _Reader, width: int, has_labels: bool) -> CondEmbedder:
    def trunk(name: str) -> Trunk:
        up = tree.linear(f"{name}/Dense_0", width, None)
        return Trunk(up, tree.linear(f"{name}/Dense_1", up.kernel.shape[1], width))

    if not has_labels:
        return CondEmbedder(trunk("time_trunk"), None, None)
    return CondEmbedder(trunk("time_trunk"), tree.array(_LABELS, None, width), trunk("label_trunk"))


def _stack(tree: _Reader, stack: str, width: int, *, adaln: bool, scan: bool, remat: Remat) -> Stack:
    blocks = _blocks(tree, stack, width)
    conditioning = Token()
    if adaln:
        conditioning = AdaLNZero(eqx.filter_vmap(Linear)(*_linears(tree, stack, "Dense_0", width, 6 * width)))
    scale, bias = (tree.array(f"{stack}/encoder_norm/{name}", width) for name in ("scale", "bias"))
    return Stack(blocks, conditioning, LayerNorm(scale, bias), scan, remat)


def _blocks(tree: _Reader, stack: str, width: int) -> Block:
    attention = "MultiHeadDotProductAttention_0"
    parts = [f"{attention}/{part}" for part in ("query", "key", "value")]
    depth, _, heads, head = tree.layers(stack, f"{parts[0]}/kernel", width, None, None).shape
    kernels = [tree.layers(stack, f"{part}/kernel", width, heads, head).reshape(depth, width, -1) for part in parts]
    biases = [tree.layers(stack, f"{part}/bias", heads, head).reshape(depth, -1) for part in parts]
    out_kernel = tree.layers(stack, f"{attention}/out/kernel", heads, head, width).reshape(depth, -1, width)
    qkv = (jnp.concatenate(kernels, axis=2), jnp.concatenate(biases, axis=1))
    out = (out_kernel, tree.layers(stack, f"{attention}/out/bias", width))
    norms = [_norms(tree, stack, name, width) for name in ("LayerNorm_0", "LayerNorm_1")]
    up = _linears(tree, stack, "MlpBlock_0/Dense_0", width, None)
    down = _linears(tree, stack, "MlpBlock_0/Dense_1", up[0].shape[2], width)

    @eqx.filter_vmap  # a block's fields are declared without the axis of the depth
    def block(norm1: Pair, qkv: Pair, out: Pair, norm2: Pair, up: Pair, down: Pair) -> Block:
        attention = Attention(Linear(*qkv), Linear(*out), None, None, heads, rotary=False)
        return Block(LayerNorm(*norm1), attention, LayerNorm(*norm2), Mlp(Linear(*up), Linear(*down)))

    return block(norms[0], qkv, out, norms[1], up, down)


def _linears(tree: _Reader, stack: str, name: str, inputs: int, outputs: int | None) -> Pair:
    # Kernel and bias of a layer in every block of a stack, with a leading axis of the depth.
    kernel = tree.layers(stack, f"{name}/kernel", inputs, outputs)
    return kernel, tree.layers(stack, f"{name}/bias", kernel.shape[2])


def _norms(tree: _Reader, stack: str, name: str, width: int) -> Pair:
    return tree.layers(stack, f"{name}/scale", width), tree.layers(stack, f"{name}/bias", width)
