"""Inception-v3, the network in whose features the Frechet Inception Distance is defined.

This is TensorFlow's graph of 2015-12-05 (Szegedy et al. 2016; Heusel et al. 2017). It differs from the Inception-v3 of
model zoos in three respects: average pooling excludes the padding, the last block uses max pooling where the paper has
average pooling, and there are 1008 classes.
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
"""The side of the square to which images are resized."""
BATCH_NORM_EPS = 1e-3

Port = Literal["pytorch", "tensorflow"]
"""The preprocessing of pixel values 0-255, and the definition of the logits.

- "pytorch": as in pytorch-fid and the reference. Half-pixel centres, 2 (x / 255) - 1; logits with their bias, as in the
  reference's Inception score.
- "tensorflow": as in the original graph, run by Heusel et al. and ADM and reproduced by torch-fidelity. The pixel
  centres of TensorFlow 1 (`resize_tensorflow`), (x - 128) / 128; logits without bias, as in Salimans et al.'s Inception
  score.
"""

FeatureMap = Float[Array, "_ _ _"]
"""A feature map (rows, columns, channels), whose shape varies from layer to layer."""


class ConvNorm(eqx.Module):
    """A convolution without bias, batch norm with stored mean and variance (eps 1e-3), and ReLU.

    The batch norm is not folded into the convolution, to keep the arrays as published.
    """

    kernel: Float[Array, "rows columns inputs outputs"]
    scale: Float[Array, "outputs"]
    bias: Float[Array, "outputs"]
    mean: Float[Array, "outputs"]
    var: Float[Array, "outputs"]

    def __call__(
        self, x: Float[Array, "rows_in columns_in inputs"], stride: int, padded: bool
    ) -> Float[Array, "rows_out columns_out outputs"]:
        """Applies the layer to one image. `padded` adds zero padding, with which a stride of 1 preserves its size."""
        convolved = lax.conv_general_dilated(
            x[None],
            self.kernel,
            (stride, stride),
            "SAME" if padded else "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            # Accelerators use a lower precision by default, but distances should not depend on the hardware.
            precision=lax.Precision.HIGHEST,
        )[0]
        factor = self.scale * lax.rsqrt(self.var + BATCH_NORM_EPS)
        return jax.nn.relu((convolved - self.mean) * factor + self.bias)


class InceptionV3(AbstractExtractor):
    """Inception-v3 with parameters in float32. `load_inception` loads the published ones.

    `layers` holds every convolution of the table by its name, such as `Mixed_5b.branch1x1`.
    """

    layers: dict[str, ConvNorm]
    fc: Linear
    port: Port = eqx.field(static=True, default="pytorch")
    name: str = eqx.field(static=True, default="inception")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray | Array], port: Port = "pytorch") -> "InceptionV3":
        """Builds the network from arrays by the names of `parameter_shapes`. Raises `KeyError` if one is missing.

        The `name` is "inception" whatever the values are; `load_inception` verifies that they are the published ones.
        """

        def array(name: str) -> Float[Array, "..."]:
            return jnp.asarray(tensors[name], jnp.float32)

        fields = ("kernel", *NORM)
        layers = {
            name: ConvNorm(**{field: array(f"{name}.{field}") for field in fields}) for name, *_ in convolutions()
        }
        return cls(layers=layers, fc=Linear(array("fc.kernel"), array("fc.bias")), port=port)

    def __call__(self, image: Float[Array, "h w c"]) -> Activations:
        """Returns features (2048), the mean over the last 8 x 8 positions, and logits (1008), for pixel values 0-255.

        Images may have any size; a greyscale image is repeated to three channels. Raises `ValueError` unless there are
        one or three channels.
        """
        channels = image.shape[2]
        if channels not in (1, 3):
            raise ValueError(f"images have {channels} channels, but Inception supports 1 or 3")
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
    """Resizes an image to a square, bilinear with the pixel centres of TensorFlow 1: row i is row i h / side.

    The first rows coincide and the last ones repeat the edge, whereas `resize_bilinear` is symmetric. There is no
    antialiasing. (`ResizeBilinear` with `half_pixel_centers` and `align_corners` off, as in the graph.)
    """

    def neighbours(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        coordinates = np.arange(side, dtype=np.float32) * np.float32(length / side)
        low = np.floor(coordinates).astype(np.int32)
        return low, np.minimum(low + 1, length - 1), coordinates - low.astype(np.float32)

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
