"""What a feature extractor is: a frozen network by which sets of images are compared."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float


class Activations(NamedTuple):
    """What an extractor says of one image: the features that distances are taken in, and unnormalised log-probabilities
    of its classes."""

    features: Float[Array, "d"]
    logits: Float[Array, "classes"]


class AbstractExtractor(eqx.Module):
    """A frozen classifier. One image at a time: use `jax.vmap`.

    `name` is "inception" only for Inception-v3 with the weights of the published FID; distances of any other extractor
    are never called FID (`umd_eqx.eval.measure.metric_names`).
    """

    name: eqx.AbstractVar[str]

    @abc.abstractmethod
    def __call__(self, image: Float[Array, "h w c"]) -> Activations:
        """Of an image in grey levels, 0 .. 255, not rescaled and of any size: resizing is the extractor's own."""


def resize_bilinear(image: Float[Array, "h w c"], side: int) -> Float[Array, "side side c"]:
    """An image as a square, bilinear as the reference does before Inception: half-pixel centres, edges repeated.

    Without antialiasing, whether it grows or shrinks, and never rounded to whole grey levels.
    """
    return jax.image.resize(image, (side, side, image.shape[2]), "linear", antialias=False)
