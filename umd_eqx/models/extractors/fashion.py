"""The trained Fashion-MNIST classifier that is distributed with the package: its weights and their card."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from umd_eqx.core.cards import card_of as card_of
from umd_eqx.core.cards import open_card, read_weights, require_described, save_weights
from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import fill
from umd_eqx.models.extractors.classifier import FashionClassifier

SHIPPED = Path(__file__).parents[2] / "weights" / "fashion_classifier.safetensors"
"""The bundled weights, written by `experiments/train_classifier.py`; their card lies beside them as `.json`."""
NUM_CLASSES = 10


def load_fashion_classifier(
    path: str | os.PathLike[str] = SHIPPED, field: str = "extractor_weights"
) -> FashionClassifier:
    """Loads a trained classifier.

    **Arguments:**

    - `path`: a file written by `experiments/train_classifier.py`; by default the one bundled with the package.
    - `field`: the field that named it.

    **Raises:** `BadInput` as `read_tensors` does, for a file that does not match its card, and for the first array that
    is missing, unexpected, of another shape, not float32 or not finite.
    """
    weights = read_weights(path, field)
    hint = "Use a file written by experiments/train_classifier.py, with its card"
    require_described(path, weights, read_card(path, field)["sha256"], field, hint)
    like = jax.eval_shape(lambda key: FashionClassifier.init(NUM_CLASSES, key=key), jax.random.key(0))
    for name, tensor in weights.tensors.items():
        if tensor.dtype != np.float32:
            raise BadInput(field, f"{path} has {name} as {tensor.dtype} instead of float32", hint)
    return fill(like, weights.tensors, path, field, hint)


def save_fashion_classifier(model: FashionClassifier, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> Path:
    """Writes the weights as safetensors in float32, and `facts` as a card beside them; returns the path of the card.

    The number of parameters and the SHA-256 of the file are added to the card. Raises `OSError` if a file cannot be
    written.
    """
    return save_weights(path, model, facts)


def read_card(path: str | os.PathLike[str] = SHIPPED, field: str = "extractor_weights") -> dict[str, Any]:
    """Returns the card of a weights file.

    It holds `sha256`, `parameters` and, for the bundled file, `test_accuracy`, `recipe` and others.

    Raises `BadInput` if the card is missing or unreadable.
    """
    with open_card(path, field, "Use the card that was written with the weights") as content:
        if not isinstance(content["sha256"], str):
            raise ValueError("its sha256 is not a string")
        return content
