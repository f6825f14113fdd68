"""The interface of evaluators, and the context that they are built from."""

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
from umd_eqx.core.errors import BadInput, member
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.processes import to_devices, to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import batch_sharding, chunked_vmap, place, replicated, round_up_to_devices
from umd_eqx.core.types import Batch, Report
from umd_eqx.data.loader import evaluation_batches
from umd_eqx.data.source import DataSource
from umd_eqx.data.transforms import ADMTransform, EvalTransform, FewShotTransform, SquashTransform
from umd_eqx.models.tokenizers.base import AbstractTokenizer, Identity
from umd_eqx.objectives import AbstractObjective

Evaluate = Callable[[Any, PRNGKeyArray], Report]
"""A pure function of the trained model (an `AbstractModel` or a tokenizer) and a key."""

Crop = Literal["evaluation", "fewshot", "squash", "adm"]
"""How images are resized and cropped (`umd_eqx.data.transforms`).

The first three are the reference's: for its evaluations, its few-shot probe and its FID. "adm" is that of ADM's FID.
"""


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """The inputs of evaluations: both splits, the path, and the tokenizer and size of the network's inputs.

    `size` is the side of images in pixels. With a `tokenizer`, the network receives latents, otherwise images.
    """

    train: DataSource
    test: DataSource
    path: AbstractPath
    size: int
    batch_size: int
    mesh: Mesh
    tokenizer: AbstractTokenizer | None = None
    """The tokenizer that encodes images to the network's latents. None: the network works on pixels."""
    objective: AbstractObjective | None = None
    """The training objective, which may limit what can be measured. None: everything is measured."""
    threads: int = 2
    """Number of threads that read images; each prepares a batch of its own."""
    notify: Callable[[str], None] = print
    """Called with messages for the user, such as missing weights."""
    phase: Callable[[str], None] = lambda _: None
    """Called with a description of the current phase of a longer computation."""

    @property
    def native(self) -> bool:
        """Whether every image of both splits already has the size of the network."""
        return all(spec.height == spec.width == self.size for spec in (self.train.spec, self.test.spec))

    @property
    def tokenizer_or_identity(self) -> AbstractTokenizer:
        """The tokenizer, or the identity for a network on pixels."""
        return Identity.init(self.train.spec.channels) if self.tokenizer is None else self.tokenizer

    @property
    def image_shapes(self) -> jax.ShapeDtypeStruct:
        """The shape, dtype and sharding of a batch of images as yielded by `images`."""
        shape = (self.batch_size, self.size, self.size, self.train.spec.channels)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(self.mesh))

    @property
    def label_shapes(self) -> jax.ShapeDtypeStruct:
        """The shape, dtype and sharding of the labels of such a batch."""
        return jax.ShapeDtypeStruct((self.batch_size,), jnp.int32, sharding=batch_sharding(self.mesh))

    @property
    def key_shapes(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the keys of a batch, one per image."""
        return jax.eval_shape(lambda: image_keys(jax.random.key(0), np.arange(self.batch_size)))

    def batches(
        self,
        split: Literal["train", "test"],
        indices: Int[np.ndarray, "count"],
        *,
        crop: Crop = "evaluation",
    ) -> Iterator[Batch]:
        """Yields batches of network inputs: the images as in `images`, or their posterior modes with a tokenizer."""
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
        """Yields the images of a split at `indices`, in order, in full batches on the devices.

        The last batch is padded with rows that are not `valid`. `crop` selects how images are resized and cropped.
        Raises whatever the source raises except `BrokenImage`, such as `BadInput` for too many broken images.
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
            yield to_devices(batch, batch_sharding(self.mesh))


@eqx.filter_jit
def posterior_mode(
    tokenizer: AbstractTokenizer, images: Float[Array, "b h w c"], mesh: Mesh
) -> Float[Array, "b lh lw lc"]:
    """Returns the posterior mode of each image of a batch that is sharded over `mesh`."""
    return chunked_vmap(lambda image: tokenizer.encode(image).mode(), images, mesh)


def decoded(
    tokenizer: AbstractTokenizer, latents: Float[np.ndarray, "n lh lw lc"], batch_size: int, mesh: Mesh
) -> Iterator[Float[np.ndarray, "b h w c"]]:
    """Yields the decoded images of latents in batches of `batch_size`, rounded up to a multiple of the devices."""
    size, tokenizer = round_up_to_devices(batch_size, mesh), place(tokenizer, replicated(mesh))
    for start in range(0, len(latents), size):
        some = latents[start : start + size]
        filled = np.resize(some, (size, *some.shape[1:]))
        yield to_host(decode_batch(tokenizer, to_devices(filled, batch_sharding(mesh)), mesh))[: len(some)]


@eqx.filter_jit
def decode_batch(
    tokenizer: AbstractTokenizer, latents: Float[Array, "b lh lw lc"], mesh: Mesh
) -> Float[Array, "b h w c"]:
    """Returns the decoded image of each latent of a batch that is sharded over `mesh`."""
    return chunked_vmap(tokenizer.decode, latents, mesh, factor=tokenizer.factor)


@dataclasses.dataclass(frozen=True)
class AbstractEvaluator(abc.ABC):
    """The hyper-parameters of an evaluation, which is made every `every` steps and at the end of a run."""

    every: int
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"]
    """Which weights to evaluate: raw, or their moving average if the run has one."""

    def validate(self, num_patches: int | None = None, field: str = "eval") -> None:
        """Raises `BadInput` for invalid hyper-parameters. By default, all are valid.

        `num_patches` is the number of patches of an image, None if unknown; `field` is the evaluator's name.
        """
        del num_patches, field

    @abc.abstractmethod
    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function. Raises `BadInput` if the data do not support it."""

    def programs(self, model: Any, context: EvalContext) -> dict[str, Program]:
        """Returns the compiled programs of an evaluation by name, at full size, to measure their memory.

        `model` and the tokenizer of `context` may consist of shapes alone (`umd_eqx.core.programs.abstract`), and its
        data of their description. By default there are none, and the evaluator's memory is not counted.
        """
        del model, context
        return {}

    @property
    def needs_noise(self) -> bool:
        """Whether the evaluation requires a network that was trained on noised images."""
        return False

    @property
    def needs_representation(self) -> bool:
        """Whether the evaluation requires a network that represents images (`AbstractPatchModel`)."""
        return False

    @property
    def needs_labels(self) -> bool:
        """Whether the evaluation requires images with labels."""
        return False

    @property
    def measures_untrained(self) -> bool:
        """Whether the network is also evaluated once with its initial weights, as a baseline."""
        return False

    def display(self, data: str | None = None) -> Display:
        """Returns the charts and captions of a report, besides its table. `data` is the data set's name, if known."""
        del data
        return Display()

    def is_baseline(self, name: str) -> bool:
        """Whether a scalar of the report does not depend on the network; it is then not measured before training."""
        del name
        return False


def require(evaluator: AbstractEvaluator, field: str, works: Mapping[str, bool], hint: str) -> None:
    """Raises `BadInput` for the first invalid hyper-parameter. `works` has True for the name of each valid one."""
    for name, fine in works.items():
        if not fine:
            raise BadInput(member(field, name), f"{getattr(evaluator, name)} is not valid", hint)


def evenly_spaced(count: int, size: int) -> Int[np.ndarray, "count"]:
    """Returns up to `count` evenly spaced indices into a data set of `size` images."""
    count = min(count, size)
    return np.arange(count) * size // max(count, 1)


def batch_rows(indices: Int[np.ndarray, "count"], batch_size: int) -> list[Int[np.ndarray, "b"]]:
    """Returns the indices of each batch of `EvalContext.batches`; the last batch is padded with its last index."""
    batches = -(-len(indices) // batch_size)
    padded = np.concatenate([indices, np.repeat(indices[-1:], batches * batch_size - len(indices))])
    return np.split(padded, batches)


def image_keys(key: PRNGKeyArray, indices: Int[np.ndarray, "b"]) -> Key[Array, "b"]:
    """Returns a key for each image, derived from its index: its noise does not depend on the batch that it is in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def weighted_mean(values: Float[np.ndarray, "count ..."], valid: np.ndarray) -> Float[np.ndarray, "..."]:
    """Returns the mean over the valid rows, NaN if there are none."""
    kept = np.asarray(values, np.float64)[np.asarray(valid, bool)]
    return np.asarray(kept.mean(axis=0)) if len(kept) else np.full(kept.shape[1:], np.nan)
