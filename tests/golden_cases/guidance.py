"""Classifier-free guidance on the recorded inputs."""

import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from golden_cases.base import Comparison, Folder, close
from golden_cases.network import kinds, mask_ratio, model_of
from umd_eqx.core.masking import View
from umd_eqx.core.paths import NETWORK_STEPS, CosineTable
from umd_eqx.core.predictions import AbstractPrediction, PredictionType
from umd_eqx.core.types import NO_CLASS, AbstractCond
from umd_eqx.models import AbstractModel
from umd_eqx.sampling import ClassifierFree, ModelDenoiser

_CASE = re.compile(r"(m\d+)_((?:tnone_)?cfg\w*)/pred")
_PATH = CosineTable()
"""For the network time, whole numbers as recorded: what is predicted as such goes through no other part of a path."""


class Masked(AbstractModel):
    """A network that sees an image through one view: those who ask a denoiser cannot hide anything."""

    network: AbstractModel
    view: View | None
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    prediction: PredictionType = eqx.field(static=True)

    def __init__(self, network: AbstractModel, view: View | None):
        self.network, self.view = network, view
        self.image_shape, self.num_classes = network.image_shape, network.num_classes
        self.prediction = network.prediction

    def cond(self, y: Any = NO_CLASS) -> AbstractCond:
        return self.network.cond(y)

    def __call__(self, x: Any, cond: Any, view: Any = None, *, key: Any = None) -> AbstractPrediction:
        assert view is None
        return self.network(x, cond, self.view, key=key)


def guidance(folder: Folder) -> Iterator[Comparison]:
    """The guided predictions, at the recorded scale. Their representations belong to the model outputs."""
    for kind in kinds(folder) if folder.has("model_inputs") else []:
        recorded = folder.files[f"model_{kind}"]
        for key in recorded:
            if match := _CASE.fullmatch(key):
                yield close(f"{kind} {key}", _guided(folder, kind, match[1], match[2]), recorded[key])


def _guided(folder: Folder, kind: str, mask: str, words: str) -> Any:
    inputs = folder.files["model_inputs"]
    model, scale = model_of(folder, kind, labels=True), inputs.scalar("cfg_scale")
    t = inputs["t"].reshape(-1) * (not words.startswith("tnone"))
    order, kept = np.zeros((t.size, 1), np.int32), None
    if mask_ratio(mask) > 0.0:
        order, kept = inputs[f"{mask}/ids_shuffle"], inputs[f"{mask}/ids_keep"].shape[1]
    numbers = (jnp.asarray(array, jnp.int32) for array in (inputs["y"].reshape(-1), order))
    times = jnp.asarray(t / NETWORK_STEPS, jnp.float32)
    return _predict(model, scale, jnp.asarray(inputs["image"], jnp.float32), times, *numbers, kept)


@eqx.filter_jit
def _predict(model: AbstractModel, scale: float, images: Any, t: Any, y: Any, order: Any, kept: int | None) -> Any:
    def of_image(image: Any, t: Any, y: Any, order: Any) -> Any:
        masked = Masked(model, None if kept is None else View(order, kept))
        by_x0, by_eps = (
            ClassifierFree(ModelDenoiser(masked, _PATH, masked.cond(y), head=head), scale)(image, t)
            for head in ("x0", "eps")
        )
        return jnp.concatenate([by_x0.x0, by_eps.eps], axis=-1)

    return jax.vmap(of_image)(images, t, y, order)
