"""Unified Masked Diffusion: denoises some images of a batch and reconstructs the others."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Batch, Metrics, Scalar
from umd_eqx.models import AbstractModel
from umd_eqx.objectives.base import AbstractObjective, Draw, split_by_period
from umd_eqx.objectives.terms import MaskedDenoising


class Unified(AbstractObjective):
    """Two objectives on one batch, each weighted by its number of images (arXiv 2406.17688, section 3)."""

    denoising: MaskedDenoising
    reconstruction: MaskedDenoising
    no_noise_prob: float = eqx.field(static=True, default=0.5)
    """Share of the batch that is reconstructed without noise, in [0, 1]; the count is rounded down."""

    @property
    def denoises(self) -> bool:
        """Whether a part with a positive share noises its images."""
        return any(part.denoises for part in self._present)

    @property
    def sees_clean_images(self) -> bool:
        """Whether a part with a positive share does not noise its images."""
        return any(part.sees_clean_images for part in self._present)

    @property
    def hides(self) -> bool:
        """Whether a part with a positive share hides patches."""
        return any(part.hides for part in self._present)

    @property
    def predicts_visible_x0(self) -> bool:
        """Whether a part with a positive share learns the clean image on visible patches of noised images."""
        return any(part.predicts_visible_x0 for part in self._present)

    @property
    def _present(self) -> list[MaskedDenoising]:
        shares = ((self.denoising, 1.0 - self.no_noise_prob), (self.reconstruction, self.no_noise_prob))
        return [part for part, share in shares if share > 0]

    def num_clean(self, batch_size: int) -> int:
        """Returns the number of reconstructed images in a batch: B r rounded down, as in the reference.

        If B r is an integer that floating point misses (0.29 of 100), the product of the reference is one too small.
        Here it is exact; otherwise micro-batches of such a batch would be split differently from the whole.
        """
        return int(batch_size * self.no_noise_prob + 1e-9)

    def draw(self, key: PRNGKeyArray, model: AbstractModel, path: AbstractPath, shape: tuple[int, ...]) -> Draw:
        """Draws for every image what denoising requires; reconstruction uses no labels and requires no more."""
        return self.denoising.draw(key, model, path, shape)

    def loss(self, model: AbstractModel, path: AbstractPath, batch: Batch, draw: Draw) -> tuple[Scalar, Metrics]:
        """Returns the mean over all images of their loss. Both kinds are passed through the network together."""
        size = batch.image.shape[0]
        clean = self.num_clean(size)
        kinds = {"denoising": (self.denoising, size - clean), "reconstruction": (self.reconstruction, clean)}
        halves = split_by_period((batch, draw), size - clean, clean)
        present = {name: (*kind, half) for (name, kind), half in zip(kinds.items(), halves, strict=True) if kind[1]}
        predictions = model.forward_groups([kind.group(model, path, *half) for kind, _, half in present.values()])
        total, metrics = jnp.zeros((), jnp.float32), {}
        for (name, (kind, count, half)), prediction in zip(present.items(), predictions, strict=True):
            loss, terms = kind.total(kind.errors(model, path, prediction, *half))
            total = total + loss * (count / size)
            metrics |= {f"{name}/loss": loss} | {f"{name}/{key}": value for key, value in terms.items()}
        return total, metrics

    def require_suitable(self, model: AbstractModel, path: AbstractPath) -> None:
        """Raises `BadInput` as the parts with a positive share do."""
        for part in self._present:
            part.require_suitable(model, path)

    def period(self, batch_size: int) -> int:
        """Returns the length of one row of the split (see `split_by_period`)."""
        return batch_size // (math.gcd(batch_size, self.num_clean(batch_size)) or 1)

    def validate(self, num_patches: int, batch_size: int, field: str = "objective") -> None:
        """Raises `BadInput` if a part is invalid or has a positive share but no images."""
        subject = f"{field}.no_noise_prob"
        if not 0.0 <= self.no_noise_prob <= 1.0:
            raise BadInput(subject, f"{self.no_noise_prob} is outside [0, 1]", "Give the share of images without noise")
        clean = self.num_clean(batch_size)
        if clean == 0 and self.no_noise_prob > 0:
            hint = f"Use at least {math.ceil(1e5 / batch_size) / 1e5:g}, or a larger `data.batch_size`"
            raise BadInput(subject, f"{self.no_noise_prob} of a batch of {batch_size} is less than one image", hint)
        if clean < batch_size:
            self.denoising.validate(num_patches, batch_size - clean, f"{field}.denoising")
        if clean > 0:
            self.reconstruction.validate(num_patches, clean, f"{field}.reconstruction")
