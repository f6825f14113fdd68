"""The token-wise layers of a transformer block.

Parameters are float32. A layer computes in the dtype of its input, which is chosen once, where tokens are embedded.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

LAYER_NORM_EPS = 1e-6

Initializer = jax.nn.initializers.Initializer
zeros = jax.nn.initializers.zeros
xavier_uniform = jax.nn.initializers.xavier_uniform()
lecun_normal = jax.nn.initializers.lecun_normal()
tiny_normal = jax.nn.initializers.normal(1e-6)


class Linear(eqx.Module):
    """A linear layer y = x W + b over the last axis; the kernel is (inputs, outputs) as in Flax."""

    kernel: Float[Array, "inputs outputs"]
    bias: Float[Array, "outputs"]

    @classmethod
    def init(
        cls,
        inputs: int,
        outputs: int,
        *,
        key: PRNGKeyArray,
        kernel_init: Initializer = lecun_normal,
        bias_init: Initializer = zeros,
    ) -> "Linear":
        """Returns a freshly initialised layer."""
        kernel_key, bias_key = jax.random.split(key)
        kernel = kernel_init(kernel_key, (inputs, outputs), jnp.float32)
        return cls(kernel, bias_init(bias_key, (outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        """Applies the layer to each row, in the dtype of `x`."""
        return _on_rows(lambda rows: rows @ self.kernel.astype(x.dtype) + self.bias.astype(x.dtype), x)


class LayerNorm(eqx.Module):
    """Layer normalisation with scale and bias, eps 1e-6; statistics in float32."""

    scale: Float[Array, "d"]
    bias: Float[Array, "d"]

    @classmethod
    def init(cls, width: int) -> "LayerNorm":
        """Returns a layer with scale 1 and bias 0."""
        return cls(jnp.ones(width, jnp.float32), jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Normalises each row."""
        normal = jax.nn.standardize(x.astype(jnp.float32), epsilon=LAYER_NORM_EPS)
        return (normal * self.scale + self.bias).astype(x.dtype)


class RMSNorm(eqx.Module):
    """Root-mean-square normalisation with a scale, eps 1e-6 (Zhang and Sennrich 2019); statistics in float32."""

    scale: Float[Array, "d"]

    @classmethod
    def init(cls, width: int) -> "RMSNorm":
        """Returns a layer with scale 1."""
        return cls(jnp.ones(width, jnp.float32))

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Normalises each row."""
        exact = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(exact), axis=-1, keepdims=True)
        return (exact * jax.lax.rsqrt(square + LAYER_NORM_EPS) * self.scale).astype(x.dtype)


class Mlp(eqx.Module):
    """Two linear layers with 4 times the width and a GELU (tanh approximation) in between."""

    up: Linear
    down: Linear

    @classmethod
    def init(cls, width: int, *, key: PRNGKeyArray) -> "Mlp":
        """Returns a freshly initialised MLP."""
        up_key, down_key = jax.random.split(key)
        return cls(
            Linear.init(width, 4 * width, key=up_key, kernel_init=xavier_uniform, bias_init=tiny_normal),
            Linear.init(4 * width, width, key=down_key, kernel_init=xavier_uniform, bias_init=tiny_normal),
        )

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Applies the two layers to each row."""
        return _on_rows(lambda rows: self.down(jax.nn.gelu(self.up(rows), approximate=True)), x)


class SwiGLU(eqx.Module):
    """The gated MLP down(SiLU(a) * b) with (a, b) = up(x) (Shazeer 2020).

    Its inner width is 8/3 of the outer one, which gives it as many parameters as `Mlp`.
    """

    up: Linear
    down: Linear

    @classmethod
    def init(cls, width: int, *, key: PRNGKeyArray) -> "SwiGLU":
        """Returns a freshly initialised MLP; the inner width is rounded up to a multiple of 8."""
        up_key, down_key = jax.random.split(key)
        between = -(-8 * width // 24) * 8
        return cls(
            Linear.init(width, 2 * between, key=up_key, kernel_init=xavier_uniform),
            Linear.init(between, width, key=down_key, kernel_init=xavier_uniform),
        )

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Applies the layers to each row."""

        def rows(x: Float[Array, "rows d"]) -> Float[Array, "rows d"]:
            gate, value = jnp.split(self.up(x), 2, axis=-1)
            return self.down(jax.nn.silu(gate) * value)

        return _on_rows(rows, x)


def sinusoid(t: Float[Array, ""], width: int) -> Float[Array, "width"]:
    """Embeds network time t in [0, 1000] as [sin(t f), cos(t f)], f_i = 10000^(-i / (width/2 - 1)).

    The denominator half - 1 is the reference's; the Transformer has half. Always computed in float32: bfloat16 cannot
    represent t f up to 1000 precisely enough.
    """
    half = width // 2
    angles = t.astype(jnp.float32) * jnp.exp(-jnp.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


def _on_rows(function: Callable[[Array], Array], x: Float[Array, "*rows d"]) -> Float[Array, "*rows outputs"]:
    # On one flat matrix: XLA's CPU backend is slow at the gradient of a product that contracts over two axes, and
    # intermediates between two products take more memory if they are not flat.
    rows = function(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])
