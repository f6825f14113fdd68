"""What a classifier is, and a small convolutional one of 28 x 28 grey images.

The features of the small one stand in for Inception's on Fashion-MNIST.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.types import Image
from umd_eqx.models.extractors.base import AbstractExtractor, Activations, resize_bilinear
from umd_eqx.models.vit.layers import Linear

SIDE = 28
"""Rows and columns of the images that it sees."""
WIDTHS = (32, 64)
"""Channels of the two convolutions."""
FEATURES = 128

he_normal = jax.nn.initializers.he_normal()


class AbstractClassifier(eqx.Module):
    """A network that is trained to recognise the class of an image (`umd_eqx.objectives.Classification`).

    One image at a time: use `jax.vmap`. A subclass may be a whole network, or a backbone with a head of which a run
    trains the head alone (`Config.trainable`).
    """

    @abc.abstractmethod
    def logits(self, image: Image) -> Float[Array, "classes"]:
        """Returns unnormalised log-probabilities of the classes.

        **Arguments:**

        - `image`: as every network of a run sees it: pixels in [-1, 1], or a latent.
        """


class Convolution(eqx.Module):
    """A 3 x 3 correlation, zeros beyond the edges; the kernel is (rows, columns, inputs, outputs)."""

    kernel: Float[Array, "3 3 inputs outputs"]
    bias: Float[Array, "outputs"]

    @classmethod
    def init(cls, inputs: int, outputs: int, *, key: PRNGKeyArray) -> "Convolution":
        """A fresh layer, its variance by the inputs of a pixel (He et al. 2015, eq. 10)."""
        return cls(he_normal(key, (3, 3, inputs, outputs), jnp.float32), jnp.zeros(outputs, jnp.float32))

    def __call__(self, x: Float[Array, "h w inputs"]) -> Float[Array, "h w outputs"]:
        """One image, of the same size."""
        layout = ("NHWC", "HWIO", "NHWC")
        sums = jax.lax.conv_general_dilated(x[None], self.kernel, (1, 1), "SAME", dimension_numbers=layout)
        return sums[0] + self.bias


class FashionClassifier(AbstractExtractor, AbstractClassifier):
    """Two convolutions, each halved by the largest of 2 x 2 and rectified, and two linear layers.

    422 thousand parameters; the 128 features are those before the last layer, all of them 0 or more. It has no state
    and no randomness: an image's features are its own, whatever batch it is in. `umd_eqx.models.extractors.fashion` has
    the trained one.
    """

    first: Convolution
    second: Convolution
    hidden: Linear
    head: Linear
    name: str = eqx.field(static=True, default="fashion")

    @classmethod
    def init(cls, num_classes: int, *, key: PRNGKeyArray) -> "FashionClassifier":
        """A fresh network."""
        first, second, hidden, head = jax.random.split(key, 4)
        return cls(
            first=Convolution.init(1, WIDTHS[0], key=first),
            second=Convolution.init(*WIDTHS, key=second),
            hidden=Linear.init((SIDE // 4) ** 2 * WIDTHS[1], FEATURES, key=hidden),
            head=Linear.init(FEATURES, num_classes, key=head),
        )

    def __call__(self, image: Float[Array, "h w c"]) -> Activations:
        """Of an image in grey levels, 0 .. 255; one of another size is resized to 28 x 28 (`resize_bilinear`).

        Three channels are red, green and blue, of which it sees the luma (Rec. 601). Raises `ValueError` for two, or
        more than three.
        """
        if image.shape[2] == 3:
            image = image @ jnp.asarray([[0.299], [0.587], [0.114]], image.dtype)
        elif image.shape[2] != 1:
            raise ValueError(f"images of {image.shape[2]} channels for a classifier of grey ones")
        if image.shape[:2] != (SIDE, SIDE):
            image = resize_bilinear(image, SIDE)
        x = jax.nn.relu(halve(self.first(image / 127.5 - 1.0)))
        x = jax.nn.relu(halve(self.second(x)))
        # Not averaged over the pixels: clothes lie in the middle of their pictures, and it counts where a sleeve is.
        features = jax.nn.relu(self.hidden(x.reshape(-1)))
        return Activations(features, self.head(features))

    def logits(self, image: Image) -> Float[Array, "classes"]:
        """As `AbstractClassifier`, of an image that `__call__` accepts, but in [-1, 1]."""
        return self((image + 1.0) * 127.5).logits


def halve(x: Float[Array, "h w c"]) -> Float[Array, "half_h half_w c"]:
    """The largest of every 2 x 2 pixels, channel by channel; both sizes are even."""
    h, w, c = x.shape
    # Not `reduce_window`: its gradient is slow on a CPU.
    return jnp.max(x.reshape(h // 2, 2, w // 2, 2, c), axis=(1, 3))
