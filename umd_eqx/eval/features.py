"""Features of many images from a frozen network."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from umd_eqx.eval.base import EvalContext, batch_rows, image_keys, likeliest
from umd_eqx.models import AbstractModel
from umd_eqx.paths import AbstractPath
from umd_eqx.programs import Program
from umd_eqx.sharding import batch_sharding, in_pieces
from umd_eqx.types import NO_CLASS, Image, Representation

Features = Literal["class_tokens", "patches", "both"]


class FeatureSet(NamedTuple):
    """Features, labels and indices, a row an image. Images that could not be read are left out."""

    class_tokens: Float[np.ndarray, "n d"]
    patches: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, "n"]
    indices: Int[np.ndarray, "n"]

    def of(self, name: Features) -> Float[np.ndarray, "n features"]:
        """One kind, or both side by side."""
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
) -> FeatureSet:
    """The representation of each image, noised on the path, without its label.

    **Arguments:**

    - `model`: represents one image (h, w, c) with values in [-1, 1].
    - `context`: whose split is read, cropped as the reference's probe does.
    - `split`, `indices`: which images, 0 .. len(split) - 1, in any order.
    - `time`: of the path, 0 (clean) to 1 (noise).
    - `key`: of the noise; an image's noise depends on the key and its index only.

    **Returns:** a row for each image that can be read, in the order of `indices`.

    **Raises:** whatever the source raises but `BrokenImage`, such as `BadInput` for too many of these; `ValueError`
    where `indices` is empty.
    """
    parts = []
    for batch, rows in zip(
        context.batches(split, indices, crop="fewshot"), batch_rows(indices, context.batch_size), strict=True
    ):
        keys = image_keys(key, rows)
        given = (jnp.asarray(batch.image), jnp.asarray(time), keys)
        features = represent_batch(model, context.path, *given, context.mesh, context.codec.factor)
        valid = np.asarray(batch.valid)
        parts.append([np.asarray(x)[valid] for x in (features.class_tokens, features.patches, batch.label, rows)])
    return FeatureSet(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def flat_pixels(
    context: EvalContext, split: Literal["train", "test"], indices: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "readable pixels"]:
    """The images themselves as features, values in [-1, 1]; those that cannot be read are left out.

    Raises as `extract` does.
    """
    batches = list(context.images(split, indices, crop="fewshot"))
    valid = np.concatenate([np.asarray(batch.valid) for batch in batches])
    images = np.concatenate([np.asarray(batch.image) for batch in batches])
    return images.reshape(len(images), -1)[valid]


def extraction_programs(model: AbstractModel, context: EvalContext) -> dict[str, Program]:
    """What `extract` compiles for a batch, by shapes alone: see `AbstractEvaluator.programs`."""
    inputs = (context.batch_size, *model.image_shape)
    images = jax.ShapeDtypeStruct(inputs, jnp.float32, sharding=batch_sharding(context.mesh))
    given = (images, jax.ShapeDtypeStruct((), jnp.float32), context.key_shapes, context.mesh, context.codec.factor)
    programs = {"represent": Program(represent_batch, (model, context.path, *given))}
    if context.tokenizer is not None:
        programs["encode"] = Program(likeliest, (context.tokenizer, context.image_shapes, context.mesh))
    return programs


@eqx.filter_jit
def represent_batch(
    model: AbstractModel,
    path: AbstractPath,
    images: Float[Array, "b h w c"],
    t: Float[Array, ""],
    keys: Key[Array, "b"],
    mesh: Mesh,
    factor: int,
) -> Representation:
    """The representation of each image (or latent, of `factor` pixels a side) of a batch, noised to time `t`."""

    def one(x0: Image, key: Key[Array, ""]) -> Representation:
        x_t = path.interpolate(x0, jax.random.normal(key, x0.shape), t)
        return model.represent(x_t, path.network_time(t), jnp.asarray(NO_CLASS))

    return in_pieces(lambda given: one(*given), (images, keys), mesh, factor=factor)
