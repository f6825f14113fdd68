"""Images, networks and contexts that are made up, so that what an evaluator must find is known."""

from collections.abc import Collection
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from umd_eqx.core.paths import AbstractPath, CosineTable
from umd_eqx.core.predictions import PredictionType, X0EpsPrediction
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import NO_CLASS, Cond, DataSpec, Representation
from umd_eqx.data.source import BrokenImage, Example
from umd_eqx.eval import EvalContext
from umd_eqx.models import AbstractPatchModel


class Source:
    """Images in memory, some of them broken."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: int = 4, broken: Collection[int] = ()):
        self.images, self._labels, self.broken = images, labels, broken
        count, height, width, channels = images.shape
        self.spec = DataSpec("fake", count, count, height, width, channels, classes)

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def __getitem__(self, index: int) -> Example:
        if index in self.broken:
            raise BrokenImage(index, "cut short")
        return {"image": self.images[index], "label": int(self._labels[index])}


def noise(count: int, size: int = 8, seed: int = 0, classes: int = 4) -> Source:
    """Random pixels with random labels."""
    rng = np.random.default_rng(seed)
    return Source(
        rng.integers(0, 256, (count, size, size, 1), np.uint8), rng.integers(0, classes, count), classes=classes
    )


def blobs(count: int, seed: int, classes: int = 4, broken: Collection[int] = ()) -> Source:
    """Classes that a line tells apart: each has pixels of its own that are bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 40, (count, 8, 8, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    return Source(images, labels, classes, broken)


def pixels(source: Source, indices: Any = slice(None)) -> np.ndarray:
    """What a network is fed, in float64."""
    return source.images[indices] / 127.5 - 1.0


def context(
    train: Source, test: Source, *, batch_size: int = 16, devices: int = 8, path: AbstractPath | None = None
) -> EvalContext:
    mesh = make_mesh(jax.devices()[:devices])
    return EvalContext(train, test, CosineTable() if path is None else path, test.spec.width, batch_size, mesh)


class Fake(AbstractPatchModel):
    """Predicts `copied` times what it sees (hidden or not) as the clean image, and no noise.

    Represents an image by its pixels, and in the place of patches by their mean.
    """

    copied: float = eqx.field(static=True, default=0.0)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=(8, 8, 1))
    num_patches: int = eqx.field(static=True, default=16)
    num_classes: int | None = eqx.field(static=True, default=None)
    patch: int = eqx.field(static=True, default=2)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    def cond(self, y=NO_CLASS) -> Cond:
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x, cond, view=None, *, key=None) -> X0EpsPrediction:
        return X0EpsPrediction(self.copied * x, jnp.zeros_like(x))

    def represent(self, x, cond) -> Representation:
        return Representation(x.reshape(-1), jnp.full(x.size, x.mean()))
