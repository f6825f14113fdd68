"""Trained Fashion-MNIST classifiers on disk: weights and card, of the bundled one and of those that runs train."""

import importlib.metadata
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from umd_eqx.core.cards import card_of as card_of
from umd_eqx.core.cards import open_card, read_weights, require_described, save_weights
from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import fill
from umd_eqx.core.types import Image, Label
from umd_eqx.models.extractors.classifier import FashionClassifier
from umd_eqx.models.finished import FinishedRun

SHIPPED = Path(__file__).parents[2] / "weights" / "fashion_classifier.safetensors"
"""The bundled weights, written by `experiments/train_classifier.py`; their card lies beside them as `.json`."""
NUM_CLASSES = 10

CLASSIFIER_FILE = "fashion_classifier.safetensors"
"""The file, with its card, that `experiments/train_classifier.py` writes to its run directory."""

COMMAND, PRESET = ("python", "experiments/train_classifier.py"), "classifier"
"""The command that trains it, and its preset."""


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


def is_written(run_dir: Path, step: int) -> bool:
    """Whether a run directory holds readable weights of the classifier at `step`, with their card."""
    try:
        load_fashion_classifier(run_dir / CLASSIFIER_FILE)
        return read_card(run_dir / CLASSIFIER_FILE).get("step") == step
    except BadInput:
        return False


def finish_classifier(run: FinishedRun) -> Path | None:
    """Writes the classifier of a run to its run directory.

    The card records the test accuracy, the recipe, the data, the command that trains the same weights (None if it is
    not known), and the library versions. Returns the path of the weights, or None if they are already there.
    """
    if is_written(run.directory, run.step):
        return None
    step, model = run.model()
    assert isinstance(model, FashionClassifier)
    data = run.config["data"]
    facts = {
        "test_accuracy": float(run.test_mean(is_recognised, model)[0]),
        "recipe": recipe_facts(run.config),
        "data": {
            "name": run.spec.name,
            "train": data["train_split"],
            "test": data["test_split"],
            "test_images": run.spec.num_test,
        },
        "command": command_of(run.preset, run.flags),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax")},
        "step": step,
        "weights": run.weights,
    }
    save_fashion_classifier(model, run.directory / CLASSIFIER_FILE, facts)
    return run.directory / CLASSIFIER_FILE


def is_recognised(model: FashionClassifier, image: Image, label: Label) -> Float[Array, "1"]:
    """Returns 1 if the most probable class of an image with values in [-1, 1] is its label, otherwise 0."""
    return (jnp.argmax(model.logits(image)) == label).astype(jnp.float32)[None]


def recipe_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyper-parameters of a run, given its configuration as plain data, by their names in a card."""
    optim, data = config["optim"], config["data"]
    return {
        "steps": optim["steps"],
        "seed": config["seed"],
        "batch_size": data["batch_size"],
        **{name: optim[name] for name in ("lr", "warmup", "weight_decay")},
        **{name: data[name] for name in ("area_min", "flip")},
    }


def command_of(preset: str, flags: tuple[str, ...] | None) -> str | None:
    """Returns the command line that trains a classifier; None if no flags express it, or it has another preset."""
    return shlex.join([*COMMAND, *flags]) if preset == PRESET and flags is not None else None
