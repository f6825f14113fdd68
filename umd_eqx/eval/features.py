"""Features of many images from a frozen network."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.processes import to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import batch_sharding, chunked_vmap
from umd_eqx.core.types import FeatureKind, Image, Representation
from umd_eqx.eval.base import AbstractEvaluator, Crop, EvalContext, batch_rows, image_keys, posterior_mode
from umd_eqx.models import AbstractModel, AbstractPatchModel

RAW_PIXELS = "raw_pixels"
"""Prefix of the names of features that are the raw pixels."""

RAW_SIDE = 32
"""The largest side of images as raw features, in pixels: at most 3,072 values, comparable to a network's features."""


class FeatureSet(NamedTuple):
    """Features, labels and indices, one row per image. Images that could not be read are left out."""

    class_tokens: Float[np.ndarray, "n d"]
    patches: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, "n"]
    indices: Int[np.ndarray, "n"]

    def of(self, name: FeatureKind) -> Float[np.ndarray, "n features"]:
        """Returns the features of one kind, or the concatenation of both."""
        if name == "both":
            return np.concatenate([self.class_tokens, self.patches], axis=1)
        return self.class_tokens if name == "class_tokens" else self.patches


def extract(
    model: AbstractModel,
    context: EvalContext,
    split: Literal["train", "test"],
    indices: Int[np.ndarray, "n"],
    time: float,
    key: PRNGKeyArray,
    *,
    crop: Crop = "fewshot",
    progress: Callable[[int], None] | None = None,
) -> FeatureSet:
    """Computes the representation of each image, noised on the path, without conditioning on its label.

    **Arguments:**

    - `model`: represents one image (h, w, c) with values in [-1, 1].
    - `context`: the data.
    - `split`, `indices`: the images, 0 .. len(split) - 1, in any order.
    - `time`: the time of the path, from 0 (clean) to 1 (noise).
    - `key`: the key of the noise; an image's noise depends on the key and its index only.
    - `crop`: how images are resized and cropped; by default as for the reference's few-shot probe.
    - `progress`: called with the number of images done after each batch.

    **Returns:** a row for each image that can be read, in the order of `indices`.

    **Raises:** whatever the source raises except `BrokenImage`, such as `BadInput` for too many broken images;
    `BadInput` for a network that is not an `AbstractPatchModel`; `ValueError` if `indices` is empty.
    """
    model = require_representation(model, "eval")
    parts = []
    for batch, rows in zip(
        context.batches(split, indices, crop=crop), batch_rows(indices, context.batch_size), strict=True
    ):
        keys = image_keys(key, rows)
        given = (jnp.asarray(batch.image), jnp.asarray(time), keys)
        features = represent_batch(model, context.path, *given, context.mesh, context.tokenizer_or_identity.factor)
        valid = to_host(batch.valid)
        parts.append([to_host(x)[valid] for x in (features.class_tokens, features.patches, batch.label, rows)])
        if progress is not None:
            progress(min(len(parts) * context.batch_size, len(indices)))
    return FeatureSet(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def require_representation(model: Any, field: str) -> AbstractPatchModel:
    """Returns the network if it is an `AbstractPatchModel`, and raises `BadInput` naming `field` otherwise."""
    if not isinstance(model, AbstractPatchModel):
        problem = f"{type(model).__name__} does not represent images"
        raise BadInput(field, problem, "Leave the probe out, or make the network an AbstractPatchModel")
    return model


def require_measurable(model: Any, evaluators: Mapping[str, AbstractEvaluator]) -> None:
    """Raises `BadInput` naming the first evaluator that requires a representation if the network has none.

    **Arguments:**

    - `model`: the trained model; it may consist of shapes alone.
    - `evaluators`: the evaluators of a run, by name.
    """
    for name, evaluator in evaluators.items():
        if evaluator.needs_representation:
            require_representation(model, f"eval.{name}")


def flat_pixels(
    context: EvalContext, split: Literal["train", "test"], indices: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "readable pixels"]:
    """Returns the raw pixels as features, with values in [-1, 1]; images that cannot be read are left out.

    Images larger than `RAW_SIDE` pixels are averaged over boxes to that side, batch by batch: 100,000 images of 256 px
    take 1.2 GB instead of 79 GB.

    Raises as `extract` does.
    """
    kept = []
    for batch in context.images(split, indices, crop="fewshot"):
        images = jnp.asarray(batch.image)
        small = to_host(images if images.shape[1] <= RAW_SIDE else box_average(images, RAW_SIDE))
        kept.append(small.reshape(len(small), -1)[to_host(batch.valid)])
    return np.concatenate(kept)


def raw_pixels_name(size: int) -> str:
    """Returns the name of the features of `flat_pixels` for images of side `size`: raw_pixels if not averaged."""
    return RAW_PIXELS if size <= RAW_SIDE else f"{RAW_PIXELS}_{RAW_SIDE}px"


@eqx.filter_jit
def box_average(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """Resizes images to squares of a smaller `side` by area-weighted averages over boxes of pixels.

    If `side` divides the numbers of rows and columns, the boxes consist of whole pixels.
    """

    def shares(length: int) -> Float[np.ndarray, "side length"]:
        edges, pixels = np.arange(side + 1) * (length / side), np.arange(length)
        inside = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return np.asarray(np.maximum(inside, 0.0) * (side / length), np.float32)

    rows, columns = (jnp.asarray(shares(length)) for length in images.shape[1:3])
    highest = jax.lax.Precision.HIGHEST  # accelerators round to a lower precision by default
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=highest)


def extraction_programs(model: AbstractPatchModel, context: EvalContext) -> dict[str, Program]:
    """Returns the programs that `extract` compiles for a batch, from shapes alone: see `AbstractEvaluator.programs`."""
    inputs = (context.batch_size, *model.image_shape)
    images = jax.ShapeDtypeStruct(inputs, jnp.float32, sharding=batch_sharding(context.mesh))
    given = (
        images,
        jax.ShapeDtypeStruct((), jnp.float32),
        context.key_shapes,
        context.mesh,
        context.tokenizer_or_identity.factor,
    )
    programs = {"represent": Program(represent_batch, (model, context.path, *given))}
    if context.tokenizer is not None:
        programs["encode"] = Program(posterior_mode, (context.tokenizer, context.image_shapes, context.mesh))
    return programs


@eqx.filter_jit
def represent_batch(
    model: AbstractPatchModel,
    path: AbstractPath,
    images: Float[Array, "b h w c"],
    t: Float[Array, ""],
    keys: Key[Array, "b"],
    mesh: Mesh,
    factor: int,
) -> Representation:
    """Returns the representation of each image of a batch, noised to time `t`.

    `factor` is the downsampling factor of the tokenizer if they are latents, otherwise 1.
    """

    def one(x0: Image, key: Key[Array, ""]) -> Representation:
        x_t = path.interpolate(x0, jax.random.normal(key, x0.shape), t)
        return model.represent(x_t, model.cond().at(path.network_time(t)))

    return chunked_vmap(lambda given: one(*given), (images, keys), mesh, factor=factor)
