"""Classifier-free guidance on the recorded inputs."""

import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from umd_eqx.models.guidance import ClassifierFree

from golden_cases.base import Comparison, Folder, close
from golden_cases.network import kinds, mask_ratio, model_of
from umd_eqx.masking import View
from umd_eqx.models import AbstractModel

_CASE = re.compile(r"(m\d+)_((?:tnone_)?cfg\w*)/pred")


def guidance(folder: Folder) -> Iterator[Comparison]:
    """The guided predictions, at the recorded scale. Their representations belong to the model outputs."""
    for kind in kinds(folder) if folder.has("model_inputs") else []:
        recorded = folder.files[f"model_{kind}"]
        for key in recorded:
            if match := _CASE.fullmatch(key):
                yield close(f"{kind} {key}", _guided(folder, kind, match[1], match[2]), recorded[key])


def _guided(folder: Folder, kind: str, mask: str, words: str) -> Any:
    inputs = folder.files["model_inputs"]
    model = ClassifierFree(model_of(folder, kind, labels=True), inputs.scalar("cfg_scale"))
    t = inputs["t"].reshape(-1) * (not words.startswith("tnone"))
    order, kept = np.zeros((t.size, 1), np.int32), None
    if mask_ratio(mask) > 0.0:
        order, kept = inputs[f"{mask}/ids_shuffle"], inputs[f"{mask}/ids_keep"].shape[1]
    numbers = (jnp.asarray(array, jnp.int32) for array in (inputs["y"].reshape(-1), order))
    return _predict(model, jnp.asarray(inputs["image"], jnp.float32), jnp.asarray(t, jnp.float32), *numbers, kept)


@eqx.filter_jit
def _predict(model: AbstractModel, images: Any, t: Any, y: Any, order: Any, kept: int | None) -> Any:
    def of_image(image: Any, t: Any, y: Any, order: Any) -> Any:
        prediction = model(image, t, y, None if kept is None else View(order, kept))
        return jnp.concatenate([prediction.x0, prediction.eps], axis=-1)

    return jax.vmap(of_image)(images, t, y, order)
