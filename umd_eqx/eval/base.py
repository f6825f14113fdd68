"""What an evaluator is, and what it is given."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from umd_eqx.core.display import Display
from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import batch_sharding, chunked_vmap, place, replicated, round_up_to_devices
from umd_eqx.core.types import Batch, Report
from umd_eqx.data.loader import evaluation_batches
from umd_eqx.data.source import DataSource
from umd_eqx.data.transforms import ADMTransform, EvalTransform, FewShotTransform, SquashTransform
from umd_eqx.models.tokenizers.base import AbstractTokenizer, Identity
from umd_eqx.objectives import AbstractObjective

Evaluate = Callable[[Any, PRNGKeyArray], Report]
"""A pure function of the model (an `AbstractModel`, or the tokenizer that is trained) and a key."""

Crop = Literal["evaluation", "fewshot", "squash", "adm"]
"""How images are brought to size (`umd_eqx.data.transforms`).

As the reference does in its evaluations, for its few-shot probe, or for FID; or as ADM does for the field's FID.
"""


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """What an evaluation may look at: both splits, the path, and how images are brought to the network.

    `size` is that of images in pixels. A network that is trained on latents is given those of `tokenizer`; without one
    it is given the images.
    """

    train: DataSource
    test: DataSource
    path: AbstractPath
    size: int
    batch_size: int
    mesh: Mesh
    tokenizer: AbstractTokenizer | None = None
    """What the network's latents are made by."""
    objective: AbstractObjective | None = None
    """What the network is trained for, where that decides what can be measured. None: everything is measured."""
    threads: int = 2
    """That read images, each a batch of its own."""
    say: Callable[[str], None] = print
    """Told what a person should know, such as weights that are missing."""
    phase: Callable[[str], None] = lambda _: None
    """Told what is going on now, where that takes long enough to be waited for."""

    @property
    def native(self) -> bool:
        """Whether every image already has the size of the network."""
        spec = self.train.spec
        return spec.height == spec.width == self.size

    @property
    def tokenizer_or_identity(self) -> AbstractTokenizer:
        """The tokenizer, or pixels as they are: so that one way of measuring serves both."""
        return Identity.init(self.train.spec.channels) if self.tokenizer is None else self.tokenizer

    @property
    def image_shapes(self) -> jax.ShapeDtypeStruct:
        """A batch of images as `images` gives it, without its values."""
        shape = (self.batch_size, self.size, self.size, self.train.spec.channels)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(self.mesh))

    @property
    def label_shapes(self) -> jax.ShapeDtypeStruct:
        """The labels of such a batch, without their values."""
        return jax.ShapeDtypeStruct((self.batch_size,), jnp.int32, sharding=batch_sharding(self.mesh))

    @property
    def key_shapes(self) -> jax.ShapeDtypeStruct:
        """A key for each image of a batch, without its value."""
        return jax.eval_shape(lambda: image_keys(jax.random.key(0), np.arange(self.batch_size)))

    def batches(
        self,
        split: Literal["train", "test"],
        indices: Int[np.ndarray, "count"],
        *,
        crop: Crop = "evaluation",
    ) -> Iterator[Batch]:
        """What the network sees of some images: as `images`, or the modes of their posteriors."""
        for batch in self.images(split, indices, crop=crop):
            yield (
                batch
                if self.tokenizer is None
                else dataclasses.replace(
                    batch, image=posterior_mode(self.tokenizer, jnp.asarray(batch.image), self.mesh)
                )
            )

    def images(
        self,
        split: Literal["train", "test"],
        indices: Int[np.ndarray, "count"],
        *,
        crop: Crop = "evaluation",
    ) -> Iterator[Batch]:
        """The images of a split by their indices, in order, as whole batches on the devices.

        The last one is filled up with rows that are not `valid`. `crop` says how images are brought to size.
        Raises whatever the source raises but `BrokenImage`, such as `BadInput` for too many of these.
        """
        source = self.train if split == "train" else self.test
        transforms = {
            "evaluation": EvalTransform(self.size),
            "fewshot": FewShotTransform(self.size, self.native),
            "squash": SquashTransform(self.size),
            "adm": ADMTransform(self.size),
        }
        transform = transforms[crop]
        for batch in evaluation_batches(source, transform, self.batch_size, indices, threads=self.threads):
            yield jax.device_put(batch, batch_sharding(self.mesh))


@eqx.filter_jit
def posterior_mode(
    tokenizer: AbstractTokenizer, images: Float[Array, "b h w c"], mesh: Mesh
) -> Float[Array, "b lh lw lc"]:
    """The mode of the posterior of each image of a batch that the devices of `mesh` share."""
    return chunked_vmap(lambda image: tokenizer.encode(image).mode(), images, mesh)


def decoded(
    tokenizer: AbstractTokenizer, latents: Float[np.ndarray, "n lh lw lc"], batch_size: int, mesh: Mesh
) -> Iterator[Float[np.ndarray, "b h w c"]]:
    """The images of latents, no more than `batch_size` (rounded up to a multiple of the devices) at once."""
    size, tokenizer = round_up_to_devices(batch_size, mesh), place(tokenizer, replicated(mesh))
    for start in range(0, len(latents), size):
        some = latents[start : start + size]
        filled = np.resize(some, (size, *some.shape[1:]))
        yield np.asarray(decode_batch(tokenizer, jax.device_put(filled, batch_sharding(mesh)), mesh))[: len(some)]


@eqx.filter_jit
def decode_batch(
    tokenizer: AbstractTokenizer, latents: Float[Array, "b lh lw lc"], mesh: Mesh
) -> Float[Array, "b h w c"]:
    """The image of each latent of a batch that the devices of `mesh` share."""
    return chunked_vmap(tokenizer.decode, latents, mesh, factor=tokenizer.factor)


@dataclasses.dataclass(frozen=True)
class AbstractEvaluator(abc.ABC):
    """The hyper-parameters of a measurement.

    `every` is the number of steps between two of them (it is also made at the end of a run), `weights` which weights
    are measured: "ema" means the average where there is one.
    """

    every: int
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"]
    """Which weights: raw, or their average where one is kept."""

    def validate(self, num_patches: int | None = None, field: str = "--eval") -> None:
        """Raises `BadInput` for hyper-parameters that cannot work. By default there are none.

        `num_patches` are those of an image, None where they are not known; `field` is the flag without its last part.
        """
        del num_patches, field

    @abc.abstractmethod
    def build(self, context: EvalContext) -> Evaluate:
        """The measurement itself. Raises `BadInput` where it cannot be made with these data."""

    def programs(self, model: Any, context: EvalContext) -> dict[str, Program]:
        """The compiled computations of a measurement, by name, at their full size: what its memory is read off.

        `model` and the tokenizer of `context` may be given by their shapes alone (`umd_eqx.core.programs.abstract`),
        and its data by their description. By default there are none: what an evaluator does not state is not counted.
        """
        del model, context
        return {}

    @property
    def needs_noise(self) -> bool:
        """Whether it asks for a network that was trained on noised images: without, it would measure noise."""
        return False

    @property
    def needs_representation(self) -> bool:
        """Whether it asks for a network with patches that represents an image (`AbstractPatchModel`)."""
        return False

    @property
    def untrained(self) -> bool:
        """Whether the network's first weights are measured once too, as the line to beat."""
        return False

    def display(self, data: str | None = None) -> Display:
        """What a report shows of it, besides a table of its numbers. `data` is the name of the data set, if known."""
        del data
        return Display()

    def is_baseline(self, name: str) -> bool:
        """Whether a number of its report is independent of the network, and so not measured of the first weights."""
        del name
        return False


def require(evaluator: AbstractEvaluator, field: str, works: Mapping[str, bool], hint: str) -> None:
    """Raises `BadInput` for the first hyper-parameter that cannot work: by their names, True where they can."""
    for name, fine in works.items():
        if not fine:
            raise BadInput(f"{field}.{name.replace('_', '-')}", f"{getattr(evaluator, name)} cannot work", hint)


def spread(count: int, size: int) -> Int[np.ndarray, "count"]:
    """`count` indices (or all) evenly over a data set of `size` images, whatever order it is stored in."""
    count = min(count, size)
    return np.arange(count) * size // max(count, 1)


def batch_rows(indices: Int[np.ndarray, "count"], batch_size: int) -> list[Int[np.ndarray, "b"]]:
    """The indices of each batch of `EvalContext.batches`; what fills up the last one repeats its last image."""
    batches = -(-len(indices) // batch_size)
    padded = np.concatenate([indices, np.repeat(indices[-1:], batches * batch_size - len(indices))])
    return np.split(padded, batches)


def image_keys(key: PRNGKeyArray, indices: Int[np.ndarray, "b"]) -> Key[Array, "b"]:
    """A key for each image by its index, so that its noise does not depend on the batch it is in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def weighted_mean(values: Float[np.ndarray, "count ..."], valid: np.ndarray) -> Float[np.ndarray, "..."]:
    """The mean over the rows that are valid. NaN where none is."""
    kept = np.asarray(values, np.float64)[np.asarray(valid, bool)]
    return np.asarray(kept.mean(axis=0)) if len(kept) else np.full(kept.shape[1:], np.nan)
