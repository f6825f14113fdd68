"""Which frozen network generated images are compared by."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from umd_eqx.core.errors import BadInput
from umd_eqx.core.programs import abstract
from umd_eqx.core.types import DataSpec
from umd_eqx.models.extractors.base import AbstractExtractor
from umd_eqx.models.extractors.fashion import load_fashion_classifier
from umd_eqx.models.extractors.inception import InceptionV3, Port
from umd_eqx.models.extractors.inception_table import parameter_shapes
from umd_eqx.models.extractors.pretrained_inception import find_inception, missing_inception

ExtractorName = Literal["auto", "inception", "fashion"]


def choose_extractor(
    name: ExtractorName,
    inception_weights: str | None,
    spec: DataSpec,
    say: Callable[[str], None] = print,
    *,
    port: Port = "pytorch",
) -> AbstractExtractor:
    """The extractor of that name.

    **Arguments:**

    - `name`: "inception", "fashion" (the classifier that comes with the package), or "auto": what comes with the
      package for the images that come with it, else Inception where its weights are found.
    - `inception_weights`: a safetensors file; None looks where they are usually kept. Naming one asks for Inception.
    - `spec`: of the data.
    - `port`: which program's Inception it is to agree with, in resizing and range (`Protocol.port`).
    - `say`: told in one line what to get, where Inception is wanted and the other is taken; and in another where the
        other is taken for images that it does not know (`unfamiliar`).

    **Raises:** `BadInput` for a file that cannot be used, and where "inception" has no weights.
    """
    if _is_own(name, inception_weights, spec):
        return _of_clothes(spec, say)
    found = find_inception(inception_weights, port)
    if found is not None:
        return found
    if name == "inception":
        raise BadInput("--inception-weights", "there are none", missing_inception())
    say(f"{missing_inception()}; features are those of the small classifier instead (fd_fashion, not FID)")
    return _of_clothes(spec, say)


def unfamiliar(extractor: str, spec: DataSpec) -> str | None:
    """What to warn of where images are scored by an extractor that was not trained on their kind; else None.

    **Arguments:**

    - `extractor`: its name. Inception knows photographs of most things; the classifier that comes with the package
        knows the clothes of Fashion-MNIST alone.
    - `spec`: of the data.
    """
    if extractor != "fashion" or spec.name == "fashion_mnist":
        return None
    return (
        f"images of {spec.name} are scored by a classifier of clothes (Fashion-MNIST), which says little of other "
        "images: compare its numbers with care, and only with each other"
    )


def _of_clothes(spec: DataSpec, say: Callable[[str], None]) -> AbstractExtractor:
    if (warning := unfamiliar("fashion", spec)) is not None:
        say(f"warning: {warning}")
    return load_fashion_classifier()


def extractor_shapes(name: ExtractorName, inception_weights: str | None, spec: DataSpec) -> AbstractExtractor:
    """The shapes of the extractor of that name, by the arguments of `choose_extractor`, without its weights.

    Inception's wherever it would be taken if its weights were there.
    """
    if _is_own(name, inception_weights, spec):
        return abstract(load_fashion_classifier())
    tensors = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in parameter_shapes().items()}
    return eqx.filter_eval_shape(InceptionV3.from_tensors, tensors)


def _is_own(name: ExtractorName, inception_weights: str | None, spec: DataSpec) -> bool:
    """Whether the classifier that comes with the package is wanted, and not only taken for want of another."""
    return name == "fashion" or (name == "auto" and inception_weights is None and spec.name == "fashion_mnist")
