"""What a training step costs, by a formula, and what the machine could do."""

import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from umd_eqx.masking import num_kept
from umd_eqx.models import AutoEncoder
from umd_eqx.models.conditioning import AdaLNZero, SharedAdaLN, Token
from umd_eqx.models.stack import Stack
from umd_eqx.models.tokenizer import AbstractTokenizer
from umd_eqx.objectives import AbstractObjective
from umd_eqx.types import Image

PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 FLOP/s of one chip by the beginning of its name, from the vendors' data sheets."""


def forward_flops(model: AutoEncoder, mask_ratio: float) -> int:
    """Floating-point operations of the products in one forward pass of one image (a multiply and an add are two).

    Softmax, normalisation and the like are not counted, as is usual for a utilisation of the matrix units.
    """
    kept = num_kept(model.num_patches, mask_ratio)
    condition = model.condition.time.down.kernel.shape[1]
    width = model.decoder_positions.shape[1]
    trunks = 2 if model.condition.label is not None else 1
    flops = trunks * 2 * (2 * condition * 2 * condition)
    flops += 2 * model.num_patches * model.embed.kernel.size
    flops += _stack_flops(model.encoder, model.class_tokens.shape[0] + kept)
    if model.bridge is not None:
        flops += 2 * (1 + kept) * model.bridge.kernel.size
    flops += _stack_flops(model.decoder, 1 + model.num_patches)
    if model.head.modulation is not None:
        flops += 2 * model.head.modulation.kernel.size
    return flops + 2 * model.num_patches * width * model.head.kernel.shape[1]


def _stack_flops(stack: Stack, tokens: int) -> int:
    depth, width = stack.blocks.norm1.scale.shape
    match stack.conditioning:
        case AdaLNZero(layers=layers):
            extra = 2 * layers.kernel.size  # its kernel has the depth already
        case SharedAdaLN(shared=shared):
            extra = 2 * shared.kernel.size
        case Token(project=project):
            extra = 0 if project is None else 2 * project.kernel.size
            tokens += 1
        case other:
            raise NotImplementedError(f"say here how many FLOPs {type(other).__name__} takes")
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width) + extra


def step_flops(model: AutoEncoder, objective: AbstractObjective, batch_size: int) -> int:
    """Model FLOPs of one training step: three forward passes' worth (one forward, two for the gradient).

    What is computed twice to save memory does not count: that is the usual meaning of "model" FLOPs.
    """
    return 3 * sum(count * forward_flops(model, ratio) for count, ratio in objective.passes(batch_size))


def encode_flops(tokenizer: AbstractTokenizer, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of encoding one image, as XLA counts them; `tokenizer` may be shapes alone."""
    return _counted(lambda tokenizer, image: tokenizer.encode_raw(image).mean, tokenizer, image_shape)


def tokenizer_step_flops(tokenizer: AbstractTokenizer, image_shape: tuple[int, int, int], batch_size: int) -> int:
    """Model FLOPs of one step of training a tokenizer: as `step_flops`, of both ways, as XLA counts them."""

    def there_and_back(tokenizer: AbstractTokenizer, image: Image) -> Image:
        return tokenizer.decode_raw(tokenizer.encode_raw(image).mode())

    return 3 * batch_size * _counted(there_and_back, tokenizer, image_shape)


def _counted(function: Callable[..., Array], tokenizer: AbstractTokenizer, image_shape: tuple[int, int, int]) -> int:
    # Nothing in a tokenizer is scanned, so that XLA, which counts the body of a loop once, counts all of it.
    arrays, static = eqx.partition(tokenizer, lambda leaf: hasattr(leaf, "dtype"))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    lowered = jax.jit(lambda arrays, image: function(eqx.combine(arrays, static), image)).lower(shapes, image)
    costs = lowered.cost_analysis()
    return int(costs["flops"]) if costs else 0


def peak_flops(*, seconds: float = 0.3) -> tuple[float, str]:
    """(FLOP/s that one device can reach at matrix products, where the number is from).

    From the data sheet where the chip is known; else measured, for about `seconds`, as the best of a few float32
    products of 1536 x 1536.
    """
    kind = jax.devices()[0].device_kind
    for name in sorted(PEAKS, key=len, reverse=True):
        if kind.startswith(name):
            return PEAKS[name], f"{name}, data sheet, bfloat16"
    return measured_peak_flops(seconds=seconds), f"{kind}, measured, float32"


def measured_peak_flops(*, seconds: float = 0.3, size: int = 1536) -> float:
    """The best FLOP/s of float32 products of two `size` x `size` matrices, tried again for about `seconds`."""
    x = jnp.ones((size, size)) * 0.5
    product = eqx.filter_jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
