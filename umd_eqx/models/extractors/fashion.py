"""The trained classifier of Fashion-MNIST that comes with the package: its weights and their card."""

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
"""What `experiments/train_classifier.py` made; its card lies beside it as `.json`."""
NUM_CLASSES = 10


def load_fashion_classifier(
    path: str | os.PathLike[str] = SHIPPED, field: str = "--extractor-weights"
) -> FashionClassifier:
    """A trained classifier.

    **Arguments:**

    - `path`: what `experiments/train_classifier.py` wrote; by default what comes with the package.
    - `field`: the flag that named it.

    **Raises:** `BadInput` for what `read_tensors` refuses, for a file that its card does not describe, and for the
    first array that is missing, has no place, or is of another shape, not float32 or not finite.
    """
    weights = read_weights(path, field)
    hint = "Take the file that experiments/train_classifier.py wrote, with its card"
    require_described(path, weights, read_card(path, field)["sha256"], field, hint)
    like = jax.eval_shape(lambda key: FashionClassifier.init(NUM_CLASSES, key=key), jax.random.key(0))
    for name, tensor in weights.tensors.items():
        if tensor.dtype != np.float32:
            raise BadInput(field, f"{path} has {name} as {tensor.dtype} and not as float32", hint)
    return fill(like, weights.tensors, path, field, hint)


def save_fashion_classifier(model: FashionClassifier, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> Path:
    """Writes the weights as safetensors in float32, and `facts` as a card beside them; gives the path of the card.

    The card gets the number of parameters and the SHA-256 of the file besides. Raises `OSError` if the disk refuses.
    """
    return save_weights(path, model, facts)


def read_card(path: str | os.PathLike[str] = SHIPPED, field: str = "--extractor-weights") -> dict[str, Any]:
    """What is known of a weights file: `sha256` (of the file), `parameters`, and of ours `test_accuracy`, `recipe`, ...

    Raises `BadInput` where there is no card that can be read.
    """
    with open_card(path, field, "Take the card that was written with the weights") as content:
        if not isinstance(content["sha256"], str):
            raise ValueError("its sha256 is no text")
        return content
