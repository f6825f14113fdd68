"""The interface of feature extractors, frozen networks with which sets of images are compared."""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float


class Activations(NamedTuple):
    """The output of an extractor for one image: its features and the unnormalised log-probabilities of its classes.

    Distances between sets of images are computed in the features.
    """

    features: Float[Array, "d"]
    logits: Float[Array, "classes"]


class AbstractExtractor(eqx.Module):
    """Base class for frozen classifiers used as feature extractors, one image at a time: use `jax.vmap`.

    `name` is "inception" only for Inception-v3 with the weights of the published FID; distances computed with any other
    extractor are never called FID (`umd_eqx.eval.measure.metric_names`). `trained_on` is the name of the data set
    (`DataSpec.name`) whose classes its logits are; None if it is used for images of any kind.
    """

    name: eqx.AbstractVar[str]
    trained_on: ClassVar[str | None] = None

    @abc.abstractmethod
    def __call__(self, image: Float[Array, "h w c"]) -> Activations:
        """Returns the activations for an image with pixel values 0-255, of any size: the extractor resizes it."""


def resize_bilinear(image: Float[Array, "h w c"], side: int) -> Float[Array, "side side c"]:
    """Resizes an image to a square as the reference does before Inception: bilinear, half-pixel centres, edge padding.

    There is no antialiasing, for enlarging or shrinking, and no rounding to integer pixel values.
    """
    return jax.image.resize(image, (side, side, image.shape[2]), "linear", antialias=False)
