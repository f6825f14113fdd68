"""The choice of the frozen network whose features generated and real images are compared by."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from umd_eqx.core.errors import BadInput
from umd_eqx.core.programs import abstract
from umd_eqx.core.types import DataSpec
from umd_eqx.models.extractors.base import AbstractExtractor
from umd_eqx.models.extractors.classifier import FashionClassifier
from umd_eqx.models.extractors.fashion import load_fashion_classifier
from umd_eqx.models.extractors.inception import InceptionV3, Port
from umd_eqx.models.extractors.inception_table import parameter_shapes
from umd_eqx.models.extractors.pretrained_inception import find_inception, missing_inception

ExtractorName = Literal["auto", "inception", "fashion"]


def choose_extractor(
    name: ExtractorName,
    inception_weights: str | None,
    spec: DataSpec,
    notify: Callable[[str], None] = print,
    *,
    port: Port = "pytorch",
) -> AbstractExtractor:
    """Returns the extractor of that name.

    **Arguments:**

    - `name`: "inception", "fashion" (the classifier that comes with the package), or "auto": the classifier for
      Fashion-MNIST, else Inception if its weights are found, else the classifier.
    - `inception_weights`: a safetensors file; None looks in the default locations. A file selects Inception.
    - `spec`: the description of the data.
    - `notify`: called with one line on how to get Inception's weights if the classifier is used for want of them, and
      with a warning if the classifier is used for data that it was not trained on (`domain_warning`).
    - `port`: the implementation whose resizing and input range Inception follows (`Protocol.port`).

    **Raises:** `BadInput` for a file that cannot be used, and for "inception" if there are no weights.
    """
    if _selects_fashion(name, inception_weights, spec):
        return _fashion_classifier(spec, notify)
    found = find_inception(inception_weights, port)
    if found is not None:
        return found
    if name == "inception":
        raise BadInput("inception_weights", "no weights were found", missing_inception())
    notify(f"{missing_inception()}; features are those of the small classifier instead (fd_fashion, not FID)")
    return _fashion_classifier(spec, notify)


def domain_warning(extractor: AbstractExtractor | type[AbstractExtractor], data: str) -> str | None:
    """Returns a warning if the extractor is made for the images of another data set than `data`, else None.

    The classifier that comes with the package is made for Fashion-MNIST. Inception, trained on photographs (ImageNet),
    is used for images of any kind.
    """
    if extractor.trained_on in (None, data):
        return None
    return (
        f"images of {data} are scored by a classifier of {extractor.trained_on}, whose features are hardly "
        "meaningful for other images: compare its numbers with care, and only with each other"
    )


def _fashion_classifier(spec: DataSpec, notify: Callable[[str], None]) -> AbstractExtractor:
    if (warning := domain_warning(FashionClassifier, spec.name)) is not None:
        notify(f"warning: {warning}")
    return load_fashion_classifier()


def extractor_shapes(name: ExtractorName, inception_weights: str | None, spec: DataSpec) -> AbstractExtractor:
    """Returns the shapes of the extractor that `choose_extractor` selects, without its weights.

    They are Inception's whenever it would be selected if its weights were found.
    """
    if _selects_fashion(name, inception_weights, spec):
        return abstract(load_fashion_classifier())
    tensors = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in parameter_shapes().items()}
    return eqx.filter_eval_shape(InceptionV3.from_tensors, tensors)


def _selects_fashion(name: ExtractorName, inception_weights: str | None, spec: DataSpec) -> bool:
    """Whether the arguments select the classifier that comes with the package, other than for want of weights."""
    known = spec.name == FashionClassifier.trained_on
    return name == "fashion" or (name == "auto" and inception_weights is None and known)
