"""Our parameters, gradients and moments back in the reference's names and shapes: the inverse of `from_reference`.

Linear, so that it takes gradients as well as weights. Written apart from `from_reference`, which it checks.
"""

import jax
import numpy as np

from umd_eqx.models import AutoEncoder
from umd_eqx.models.vit.conditioning import AdaLNZero
from umd_eqx.models.vit.layers import LayerNorm, Linear
from umd_eqx.models.vit.stack import Stack

Arrays = dict[str, np.ndarray]


def head_kernel(kernel: np.ndarray) -> np.ndarray:
    """A transposed convolution (row, column, in, out) as one linear layer: flipped in space, the input axis first."""
    return np.asarray(kernel)[::-1, ::-1].transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)


def to_reference(model: AutoEncoder) -> Arrays:
    """The leaves of a model, or of a PyTree of its shape, by the reference's names."""
    model = jax.tree.map(np.asarray, model)
    p, (_, _, channels) = model.patch, model.image_shape
    width = model.positions.shape[1]
    head = model.head.kernel.reshape(width, p, p, 2 * channels).transpose(1, 2, 0, 3)[::-1, ::-1]
    leaves: Arrays = {
        "cls": model.class_tokens[None],
        "pos_embedding": model.positions[None],
        "dec_pos_embedding": model.decoder_positions[None],
        "image_mask_embedding": model.mask_token[None, None],
        "embedding/kernel": model.embed.kernel.reshape(p, p, channels, width),
        "embedding/bias": model.embed.bias,
        "final_conv/kernel": head,
        "final_conv/bias": model.head.bias,
    }
    leaves |= _linear("time_trunk/Dense_0", model.condition.time.up)
    leaves |= _linear("time_trunk/Dense_1", model.condition.time.down)
    if model.condition.label is not None:
        leaves |= {"label_emb/embedding/embedding": model.condition.label_table}
        leaves |= _linear("label_trunk/Dense_0", model.condition.label.up)
        leaves |= _linear("label_trunk/Dense_1", model.condition.label.down)
    if model.head.modulation is not None:
        leaves |= _linear("final_modulation", model.head.modulation)
    return leaves | _stack("Encoder", model.encoder) | _stack("Decoder", model.decoder)


def _linear(name: str, layer: Linear) -> Arrays:
    return {f"{name}/kernel": layer.kernel, f"{name}/bias": layer.bias}


def _norm(name: str, layer: LayerNorm) -> Arrays:
    return {f"{name}/scale": layer.scale, f"{name}/bias": layer.bias}


def _stack(name: str, stack: Stack) -> Arrays:
    leaves = _norm(f"{name}/encoder_norm", stack.norm)
    for i in range(stack.blocks.norm1.scale.shape[0]):
        # `heads` is static and survives; every array loses its axis of the depth.
        block = jax.tree.map(lambda leaf, i=i: leaf[i], stack.blocks)
        prefix = f"{name}/Encoder1DBlock_{i}"
        leaves |= _norm(f"{prefix}/LayerNorm_0", block.norm1) | _norm(f"{prefix}/LayerNorm_1", block.norm2)
        leaves |= _linear(f"{prefix}/MlpBlock_0/Dense_0", block.mlp.up)
        leaves |= _linear(f"{prefix}/MlpBlock_0/Dense_1", block.mlp.down)
        attention, heads = f"{prefix}/MultiHeadDotProductAttention_0", block.attention.heads
        width = block.attention.out.bias.shape[0]
        kernels = block.attention.qkv.kernel.reshape(width, 3, heads, -1)
        biases = block.attention.qkv.bias.reshape(3, heads, -1)
        for j, part in enumerate(("query", "key", "value")):
            leaves |= {f"{attention}/{part}/kernel": kernels[:, j], f"{attention}/{part}/bias": biases[j]}
        leaves[f"{attention}/out/kernel"] = block.attention.out.kernel.reshape(heads, -1, width)
        leaves[f"{attention}/out/bias"] = block.attention.out.bias
        if isinstance(stack.conditioning, AdaLNZero):
            modulation = jax.tree.map(lambda leaf, i=i: leaf[i], stack.conditioning.layers)
            leaves |= _linear(f"{prefix}/Dense_0", modulation)
    return leaves
