"""The FLOPs of a training step, counted in the traced loss, and the peak FLOP/s of a device."""

import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, PRNGKeyArray, PyTree

from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.objectives import AbstractObjective

PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 FLOP/s of one chip by the prefix of its name, from the vendors' data sheets."""


def step_flops(
    objective: AbstractObjective,
    model: PyTree,
    path: AbstractPath,
    image_shape: tuple[int, int, int],
    batch_size: int,
    trainable: Callable[[PyTree], PyTree] | None = None,
) -> int:
    """Returns the model FLOPs of one training step: three times those of the forward loss (two for its gradient).

    FLOPs are those of matrix products (`product_flops`). If only a part is `trainable` (`umd_eqx.training.trainable`),
    they are those of the loss and of its directional derivative along that part, which takes as many as the gradient.
    Rematerialised computations are not counted, which is the usual meaning of "model" FLOPs. `model` is whatever the
    objective trains, and may consist of shapes alone.
    """
    shape = (batch_size, *image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)

    def loss(model: PyTree, images: Array, key: PRNGKeyArray) -> Array:
        batch = Batch(images, jnp.zeros(batch_size, jnp.int32), jnp.ones(batch_size, bool))
        return objective.loss(model, path, batch, objective.draw(key, model, path, shape))[0]

    if trainable is None:
        return 3 * product_flops(loss, model, images, jax.random.key(0))

    def derivative(trained: PyTree, frozen: PyTree, images: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        return eqx.filter_jvp(lambda part: loss(eqx.combine(part, frozen), images, key), (trained,), (trained,))

    return product_flops(derivative, *eqx.partition(model, trainable(model)), images, jax.random.key(0))


def encode_flops(tokenizer: AbstractTokenizer, image_shape: tuple[int, int, int]) -> int:
    """Returns the FLOPs of the matrix products of encoding one image; `tokenizer` may consist of shapes alone."""
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return product_flops(lambda tokenizer, image: tokenizer.encode_raw(image).mean, tokenizer, image)


def product_flops(function: Callable[..., PyTree], *arguments: PyTree) -> int:
    """Returns the FLOPs of the matrix products and convolutions of a function (a multiply-add is two).

    They are counted in the traced function, with the body of a `scan` multiplied by its length. Softmax, normalisation
    and the like are not counted, as is usual for the utilisation of matrix units. Arguments may be shapes alone. Of the
    branches of a `cond`, the most expensive one is counted. Raises `ValueError` for products within a `while`, because
    its number of iterations is unknown.
    """
    jaxpr, _, _ = eqx.filter_make_jaxpr(function)(*arguments)
    return _products(jaxpr.jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_products(each) for each in jaxprs_in_params(equation.params)]
        match equation.primitive.name:
            case "dot_general":
                contracted, _ = equation.params["dimension_numbers"][0]
                lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
                total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
            case "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                out_axis = equation.params["dimension_numbers"].rhs_spec[0]
                products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[out_axis]
                # A transposed convolution has zeros inserted between the pixels, whose products are not counted.
                total += 2 * products // math.prod(equation.params["lhs_dilation"])
            case "scan":
                total += equation.params["length"] * sum(inner)
            case "cond":
                total += max(inner)
            case "while":
                if sum(inner):
                    raise ValueError("the number of iterations of a while loop with matrix products is unknown")
            case "custom_jvp_call" | "custom_vjp_call":
                total += inner[0]  # the function itself, without its derivative rule
            case _:
                total += sum(inner)
    return total


def peak_flops(*, seconds: float = 0.3) -> tuple[float, str]:
    """Returns (peak FLOP/s of one device at matrix products, description of its source).

    It is from the data sheet for a known chip, and otherwise measured for about `seconds`, as the best of several
    float32 products of 1536 x 1536 matrices.
    """
    kind = jax.devices()[0].device_kind
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if kind.startswith(name):
            return PEAK_FLOPS[name], f"{name}, data sheet, bfloat16"
    return measured_peak_flops(seconds=seconds), f"{kind}, measured, float32"


def measured_peak_flops(*, seconds: float = 0.3, size: int = 1536) -> float:
    """Returns the best FLOP/s of float32 products of two `size` x `size` matrices, repeated for about `seconds`."""
    x = jnp.ones((size, size)) * 0.5
    product = eqx.filter_jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
