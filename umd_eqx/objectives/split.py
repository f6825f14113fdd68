"""Unified Masked Diffusion: some images of a batch are denoised, the others reconstructed."""

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
    """Two objectives on one batch, each weighted by how many images it has (arXiv 2406.17688, section 3)."""

    denoising: MaskedDenoising
    reconstruction: MaskedDenoising
    no_noise_prob: float = eqx.field(static=True, default=0.5)
    """Share of the batch that is reconstructed without noise, in [0, 1]; the count is rounded down."""

    @property
    def denoises(self) -> bool:
        """Whether a part with images noises them."""
        return any(part.denoises for part in self._present)

    @property
    def hides(self) -> bool:
        """Whether a part with images has a mask."""
        return any(part.hides for part in self._present)

    @property
    def predicts_visible_x0(self) -> bool:
        """Whether a part with images learns the clean image on visible patches of noised ones."""
        return any(part.predicts_visible_x0 for part in self._present)

    @property
    def _present(self) -> list[MaskedDenoising]:
        shares = ((self.denoising, 1.0 - self.no_noise_prob), (self.reconstruction, self.no_noise_prob))
        return [part for part, share in shares if share > 0]

    def num_clean(self, batch_size: int) -> int:
        """How many images of a batch are reconstructed: the floor of B r, as in the reference.

        Where B r is a whole number that binary fractions miss (0.29 of 100), the reference's own product falls one
        short. Here it does not: micro-batches of such a batch would be split otherwise than the whole.
        """
        return int(batch_size * self.no_noise_prob + 1e-9)

    def draw(self, key: PRNGKeyArray, model: AbstractModel, path: AbstractPath, shape: tuple[int, ...]) -> Draw:
        """That of the denoised part for every image: the other part never has labels, and needs no more."""
        return self.denoising.draw(key, model, path, shape)

    def loss(self, model: AbstractModel, path: AbstractPath, batch: Batch, draw: Draw) -> tuple[Scalar, Metrics]:
        """The mean over all images of whichever loss each has. Both kinds go through the network together."""
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

    def period(self, batch_size: int) -> int:
        """The length of one row of the split."""
        return batch_size // (math.gcd(batch_size, self.num_clean(batch_size)) or 1)

    def validate(self, num_patches: int, batch_size: int, field: str = "--objective") -> None:
        """Raises `BadInput` where a part cannot work or would have no image."""
        flag = f"{field}.no-noise-prob"
        if not 0.0 <= self.no_noise_prob <= 1.0:
            raise BadInput(flag, f"{self.no_noise_prob} is outside [0, 1]", "Give the share of images without noise")
        clean = self.num_clean(batch_size)
        if clean == 0 and self.no_noise_prob > 0:
            hint = f"Use at least {math.ceil(1e5 / batch_size) / 1e5:g}, or a larger --data.batch-size"
            raise BadInput(flag, f"{self.no_noise_prob} of a batch of {batch_size} is no image at all", hint)
        if clean < batch_size:
            self.denoising.validate(num_patches, batch_size - clean, f"{field}.denoising")
        if clean > 0:
            self.reconstruction.validate(num_patches, clean, f"{field}.reconstruction")
