"""Inception-v3, the network in whose features the Frechet Inception Distance is defined.

TensorFlow's graph of 2015-12-05 (Szegedy et al. 2016; Heusel et al. 2017), which differs from the Inception-v3 of the
model zoos in three things: averages do not count what lies outside the image, the last block takes a maximum where the
paper has an average, and there are 1008 classes.
"""

import math
from collections.abc import Mapping
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from umd_eqx.models.extractors.base import AbstractExtractor, Activations, resize_bilinear
from umd_eqx.models.extractors.inception_table import BLOCKS, NORM, STEM, Branch, Pool, convolutions, side_by_side
from umd_eqx.models.vit.layers import Linear

SIDE = 299
"""Of the square that images are brought to."""
BATCH_NORM_EPS = 1e-3

Port = Literal["pytorch", "tensorflow"]
"""How grey levels become the network's input, and which logits come out of it.

- "pytorch": pytorch-fid, and the reference with it. Half-pixel centres, 2 (x / 255) - 1; logits with their bias, as the
  reference's Inception score has them.
- "tensorflow": the graph itself, as Heusel et al. and ADM run it and torch-fidelity repeats it. The centres of
  TensorFlow 1 (`resize_tensorflow`), (x - 128) / 128; logits without bias, as in Salimans et al.'s Inception score.
"""

FeatureMap = Float[Array, "_ _ _"]
"""Rows, columns and channels, different from step to step."""


class ConvNorm(eqx.Module):
    """A convolution without bias, batch norm by its stored mean and variance (eps 1e-3), ReLU.

    Not folded into one another, so that the arrays are the published ones.
    """

    kernel: Float[Array, "rows columns inputs outputs"]
    scale: Float[Array, "outputs"]
    bias: Float[Array, "outputs"]
    mean: Float[Array, "outputs"]
    var: Float[Array, "outputs"]

    def __call__(
        self, x: Float[Array, "rows_in columns_in inputs"], stride: int, padded: bool
    ) -> Float[Array, "rows_out columns_out outputs"]:
        """Of one image. `padded` surrounds it with zeros so that stride 1 keeps its size."""
        convolved = lax.conv_general_dilated(
            x[None],
            self.kernel,
            (stride, stride),
            "SAME" if padded else "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            # Accelerators round to fewer bits by default, and a distance should not depend on who took it.
            precision=lax.Precision.HIGHEST,
        )[0]
        factor = self.scale * lax.rsqrt(self.var + BATCH_NORM_EPS)
        return jax.nn.relu((convolved - self.mean) * factor + self.bias)


class InceptionV3(AbstractExtractor):
    """The network, with parameters in float32. `load_inception` reads the published ones.

    `layers` holds every convolution of the table by its name, such as `Mixed_5b.branch1x1`.
    """

    layers: dict[str, ConvNorm]
    fc: Linear
    port: Port = eqx.field(static=True, default="pytorch")
    name: str = eqx.field(static=True, default="inception")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray | Array], port: Port = "pytorch") -> "InceptionV3":
        """Of arrays by the names of `parameter_shapes`. Raises `KeyError` for one that is missing.

        The network calls itself "inception" whatever the numbers are; `load_inception` sees that they are the published
        ones.
        """

        def array(name: str) -> Float[Array, "..."]:
            return jnp.asarray(tensors[name], jnp.float32)

        fields = ("kernel", *NORM)
        layers = {
            name: ConvNorm(**{field: array(f"{name}.{field}") for field in fields}) for name, *_ in convolutions()
        }
        return cls(layers=layers, fc=Linear(array("fc.kernel"), array("fc.bias")), port=port)

    def __call__(self, image: Float[Array, "h w c"]) -> Activations:
        """FeatureMap (2048), the mean over the last 8 x 8 places, and logits (1008), of grey levels 0 .. 255.

        Of any size; a grey image is taken for one with three equal channels. Raises `ValueError` for other channels.
        """
        channels = image.shape[2]
        if channels not in (1, 3):
            raise ValueError(f"images of {channels} channels, where Inception sees 1 or 3")
        x = jnp.repeat(_prepare(image.astype(jnp.float32), self.port), 3 // channels, axis=2)
        x = self._along(STEM, "", x)
        for block in BLOCKS:
            x = jnp.concatenate([self._along(branch, f"{block.name}.", x) for branch in block.branches], axis=2)
        features = jnp.mean(x, axis=(0, 1))
        logits = jnp.dot(features, self.fc.kernel, precision=lax.Precision.HIGHEST)
        return Activations(features, logits + self.fc.bias if self.port == "pytorch" else logits)

    def _along(self, branch: Branch, prefix: str, x: FeatureMap) -> FeatureMap:
        for step in branch:
            if isinstance(step, Pool):
                x = _pool(x, step)
            else:
                convolved = [self.layers[prefix + c.name](x, c.stride, c.padded) for c in side_by_side(step)]
                x = jnp.concatenate(convolved, axis=2)
        return x


def resize_tensorflow(image: Float[Array, "h w c"], side: int) -> Float[Array, "side side c"]:
    """An image as a square, bilinear with the centres of TensorFlow 1: row i is row i h / side of the image.

    So the first rows coincide and the last ones repeat the edge, where `resize_bilinear` is symmetric. Without
    antialiasing. (`ResizeBilinear` with `half_pixel_centers` and `align_corners` off, as it is in the graph.)
    """

    def neighbours(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = np.arange(side, dtype=np.float32) * np.float32(length / side)
        low = np.floor(place).astype(np.int32)
        return low, np.minimum(low + 1, length - 1), place - low.astype(np.float32)

    low, high, part = neighbours(image.shape[1])
    columns = image[:, low] + (image[:, high] - image[:, low]) * part[None, :, None]
    low, high, part = neighbours(image.shape[0])
    return columns[low] + (columns[high] - columns[low]) * part[:, None, None]


def _prepare(image: Float[Array, "h w c"], port: Port) -> Float[Array, "299 299 c"]:
    if port == "tensorflow":
        return (resize_tensorflow(image, SIDE) - 128.0) / 128.0
    return 2.0 * (resize_bilinear(image, SIDE) / 255.0) - 1.0


def _pool(x: FeatureMap, pool: Pool) -> FeatureMap:
    window, strides, padding = (3, 3, 1), (pool.stride, pool.stride, 1), "SAME" if pool.stride == 1 else "VALID"
    if pool.kind == "max":
        return lax.reduce_window(x, -math.inf, lax.max, window, strides, padding)
    inside = jnp.ones((*x.shape[:2], 1), x.dtype)
    sums, counts = (lax.reduce_window(values, 0.0, lax.add, window, strides, padding) for values in (x, inside))
    return sums / counts
