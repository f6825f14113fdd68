"""Means over many images, batch by batch over the devices."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from umd_eqx.core.processes import to_devices, to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import batch_sharding, chunked_vmap, make_mesh, on_mesh, round_up_to_devices
from umd_eqx.data.loader import evaluation_batches
from umd_eqx.data.source import DataSource
from umd_eqx.data.transforms import EvalTransform
from umd_eqx.eval.base import evenly_spaced
from umd_eqx.models.finished import PerExample, PerImage


def mean_over_images(
    function: PerImage,
    model: Any,
    source: DataSource,
    size: int,
    *,
    batch_size: int = 256,
    images: int = 10_000,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "k"]:
    """Returns the mean of `function(model, image)` in float64, over `images` evenly spaced images of the source.

    **Arguments:**

    - `function`: receives one image with values in [-1, 1], and returns values of the same shape for every image.
    - `model`: a PyTree.
    - `size`: the side that images are resized to, in pixels.
    - `batch_size`: rounded up to a multiple of the devices.
    - `mesh`: the devices that each batch is sharded over; all by default.

    **Raises:** what the source raises, and `ValueError` if no image can be read.
    """
    mesh = make_mesh() if mesh is None else mesh
    given = (source, size, batch_size, images, mesh)
    return _mean(lambda model, images, _: _values(function, model, images, mesh), model, *given)


def mean_over_examples(
    function: PerExample,
    model: Any,
    source: DataSource,
    size: int,
    *,
    batch_size: int = 256,
    images: int = 10_000,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "k"]:
    """As `mean_over_images`, for a `function(model, image, label)`."""
    mesh = make_mesh() if mesh is None else mesh
    given = (source, size, batch_size, images, mesh)
    return _mean(lambda *batch: _labelled_values(function, batch, mesh), model, *given)


def mean_program(function: PerImage, model: Any, images: jax.ShapeDtypeStruct, mesh: Mesh) -> Program:
    """Returns the program that `mean_over_images` compiles for a batch, from shapes alone."""
    return Program(_values, (function, model, images, mesh))


def _mean(
    values_of: Callable[[Any, Array, Array], Float[Array, "b k"]],
    model: Any,
    source: DataSource,
    size: int,
    batch_size: int,
    images: int,
    mesh: Mesh,
) -> Float[np.ndarray, "k"]:
    model, batch_size = on_mesh(model, mesh), round_up_to_devices(batch_size, mesh)
    total, count = np.zeros(()), 0
    for batch in evaluation_batches(source, EvalTransform(size), batch_size, evenly_spaced(images, len(source))):
        given = to_devices((batch.image, batch.label), batch_sharding(mesh))
        values = to_host(values_of(model, *given)).astype(np.float64)[np.asarray(batch.valid)]
        total, count = total + values.sum(axis=0), count + len(values)
    if not count:
        raise ValueError("no image could be read")
    return total / count


@eqx.filter_jit
def _values(function: PerImage, model: Any, images: Float[Array, "b h w c"], mesh: Mesh) -> Float[Array, "b k"]:
    return chunked_vmap(lambda image: function(model, image), images, mesh)


@eqx.filter_jit
def _labelled_values(
    function: PerExample, given: tuple[Any, Float[Array, "b h w c"], Int[Array, "b"]], mesh: Mesh
) -> Float[Array, "b k"]:
    model, *examples = given
    return chunked_vmap(lambda example: function(model, *example), tuple(examples), mesh)
