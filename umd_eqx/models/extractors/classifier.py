"""The interface of classifiers, and a small convolutional classifier of 28 x 28 greyscale images.

On Fashion-MNIST, the features of the small classifier are used instead of Inception's.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.types import Image
from umd_eqx.models.extractors.base import AbstractExtractor, Activations, resize_bilinear
from umd_eqx.models.vit.layers import Linear

SIDE = 28
"""Rows and columns of the images that it classifies."""
WIDTHS = (32, 64)
"""Channels of the two convolutions."""
FEATURES = 128

he_normal = jax.nn.initializers.he_normal()


class AbstractClassifier(eqx.Module):
    """Base class for networks trained to classify images (`umd_eqx.objectives.Classification`).

    One image at a time: use `jax.vmap`. A subclass may be a whole network, or a backbone with a head of which only the
    head is trained (`Config.trainable`).
    """

    @abc.abstractmethod
    def logits(self, image: Image) -> Float[Array, "classes"]:
        """Returns unnormalised log-probabilities of the classes.

        **Arguments:**

        - `image`: the input of every network in a run: pixels in [-1, 1], or a latent.
        """


class Convolution(eqx.Module):
    """A 3 x 3 convolution (cross-correlation) with zero padding; the kernel is (rows, columns, inputs, outputs)."""

    kernel: Float[Array, "3 3 inputs outputs"]
    bias: Float[Array, "outputs"]

    @classmethod
    def init(cls, inputs: int, outputs: int, *, key: PRNGKeyArray) -> "Convolution":
        """Returns a freshly initialised layer, with the variance given by its fan-in (He et al. 2015, eq. 10)."""
        return cls(he_normal(key, (3, 3, inputs, outputs), jnp.float32), jnp.zeros(outputs, jnp.float32))

    def __call__(self, x: Float[Array, "h w inputs"]) -> Float[Array, "h w outputs"]:
        """Applies the layer to one image, whose size is preserved."""
        layout = ("NHWC", "HWIO", "NHWC")
        sums = jax.lax.conv_general_dilated(x[None], self.kernel, (1, 1), "SAME", dimension_numbers=layout)
        return sums[0] + self.bias


class FashionClassifier(AbstractExtractor, AbstractClassifier):
    """Two convolutions, each followed by 2 x 2 max pooling and ReLU, and two linear layers.

    The network has 422 thousand parameters. The 128 features are the inputs of the last layer, all of them 0 or more.
    It has no state and no randomness: the features of an image do not depend on its batch. The trained network is in
    `umd_eqx.models.extractors.fashion`.
    """

    first: Convolution
    second: Convolution
    hidden: Linear
    head: Linear
    name: str = eqx.field(static=True, default="fashion")
    trained_on: ClassVar[str | None] = "fashion_mnist"

    @classmethod
    def init(cls, num_classes: int, *, key: PRNGKeyArray) -> "FashionClassifier":
        """Returns a freshly initialised network."""
        first, second, hidden, head = jax.random.split(key, 4)
        return cls(
            first=Convolution.init(1, WIDTHS[0], key=first),
            second=Convolution.init(*WIDTHS, key=second),
            hidden=Linear.init((SIDE // 4) ** 2 * WIDTHS[1], FEATURES, key=hidden),
            head=Linear.init(FEATURES, num_classes, key=head),
        )

    def __call__(self, image: Float[Array, "h w c"]) -> Activations:
        """Returns the activations for an image with pixel values 0-255, resized to 28 x 28 by `resize_bilinear`.

        Images with three channels (red, green, blue) are converted to luma (Rec. 601). Raises `ValueError` unless there
        are one or three channels.
        """
        if image.shape[2] == 3:
            image = image @ jnp.asarray([[0.299], [0.587], [0.114]], image.dtype)
        elif image.shape[2] != 1:
            raise ValueError(f"images have {image.shape[2]} channels, but the classifier supports 1 or 3")
        if image.shape[:2] != (SIDE, SIDE):
            image = resize_bilinear(image, SIDE)
        x = jax.nn.relu(max_pool(self.first(image / 127.5 - 1.0)))
        x = jax.nn.relu(max_pool(self.second(x)))
        # Not averaged over the pixels: clothes are centred in their images, and the position of a sleeve matters.
        features = jax.nn.relu(self.hidden(x.reshape(-1)))
        return Activations(features, self.head(features))

    def logits(self, image: Image) -> Float[Array, "classes"]:
        """Returns the logits for an image as accepted by `__call__`, but with values in [-1, 1]."""
        return self((image + 1.0) * 127.5).logits


def max_pool(x: Float[Array, "h w c"]) -> Float[Array, "half_h half_w c"]:
    """Applies 2 x 2 max pooling to each channel; both sides must be even."""
    h, w, c = x.shape
    # Not `reduce_window`: its gradient is slow on a CPU.
    return jnp.max(x.reshape(h // 2, 2, w // 2, 2, c), axis=(1, 3))
