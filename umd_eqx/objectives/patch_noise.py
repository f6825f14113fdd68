"""Denoising of images with an individual noise level for each patch."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import View, draw_order, hidden_patches, num_kept, patchify, unpatchify
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.predictions import AbstractPrediction
from umd_eqx.core.types import NO_CLASS, AbstractCond, Batch, Image, Metrics, Scalar
from umd_eqx.models import AbstractModel, AbstractPatchModel, Group
from umd_eqx.models.base import over_rows
from umd_eqx.objectives.base import AbstractObjective, in_rows, mark_invalid_labels
from umd_eqx.objectives.named import denoising
from umd_eqx.objectives.terms import MaskedDenoising, Term


class PatchDraw(eqx.Module):
    """The random numbers of one batch, one entry per image; `t` has a time for each patch in raster order."""

    t: Float[Array, "b n"]
    eps: Float[Array, "b h w c"]
    order: Int[Array, "b n"]
    drop_label: Bool[Array, "b"]


class PatchNoise(AbstractObjective):
    """`MaskedDenoising` with a time for each patch; the network is conditioned on the times of all patches.

    A share `shared_prob` of the images has one time for all patches, as in sampling. With equal times for all patches
    of each image, the loss equals that of `MaskedDenoising` (its "visible" and "hidden" regions are means over
    patches). It requires a network that accepts a time for each patch (`AbstractPatchModel.accepts_patch_times`).
    """

    terms: Annotated[tuple[Term, ...], tyro.conf.Suppress] = eqx.field(static=True, default=denoising().terms)
    mask_ratio: float = eqx.field(static=True, default=0.0)
    """Share of the patches that are hidden from the encoder, in [0, 1)."""
    shared_prob: float = eqx.field(static=True, default=0.5)
    """Share of the images that have one time for all patches."""
    label_dropout: float = eqx.field(static=True, default=0.1)
    """Probability that the label of an image is replaced by `NO_CLASS` (for classifier-free guidance)."""

    @property
    def sees_clean_images(self) -> bool:
        """Always False: every image is noised."""
        return False

    @property
    def hides(self) -> bool:
        """Whether patches are hidden, that is, whether `mask_ratio` is positive."""
        return self.mask_ratio > 0

    @property
    def predicts_visible_x0(self) -> bool:
        """See `MaskedDenoising.predicts_visible_x0`."""
        return self._plain.predicts_visible_x0

    @property
    def _plain(self) -> MaskedDenoising:
        return MaskedDenoising(self.terms, self.mask_ratio, label_dropout=self.label_dropout)

    def draw(
        self, key: PRNGKeyArray, model: AbstractPatchModel, path: AbstractPath, shape: tuple[int, ...]
    ) -> PatchDraw:
        """Draws the times of all patches, the noise, the order of the patches, and which labels are dropped."""
        t_key, shared_key, eps_key, order_key, drop_key = jax.random.split(key, 5)
        batch, n = shape[0], model.num_patches
        uniform = jax.random.uniform(t_key, (batch, n), jnp.float32)
        shared = jax.random.bernoulli(shared_key, jnp.asarray(self.shared_prob, jnp.float32), (batch, 1))
        return PatchDraw(
            t=jax.vmap(jax.vmap(path.time_from_uniform))(jnp.where(shared, uniform[:, :1], uniform)),
            eps=jax.random.normal(eps_key, shape, jnp.float32),
            order=jax.vmap(draw_order, in_axes=(0, None))(jax.random.split(order_key, batch), n),
            drop_label=jax.random.bernoulli(drop_key, jnp.asarray(self.label_dropout, jnp.float32), (batch,)),
        )

    def loss(
        self, model: AbstractPatchModel, path: AbstractPath, batch: Batch, draw: PatchDraw
    ) -> tuple[Scalar, Metrics]:
        """Returns the weighted sum of the terms, and the unweighted terms by name, each a mean over the batch."""
        kept = num_kept(model.num_patches, self.mask_ratio)
        batch, draw = in_rows((batch, draw), batch.image.shape[0])
        views = over_rows(lambda order: View(order, kept))(draw.order)

        def cond(t: Float[Array, "n"], label: Array, dropped: Array) -> AbstractCond:
            y = jnp.where(dropped, NO_CLASS, mark_invalid_labels(label, model.num_classes))
            return model.cond(y).at(jax.vmap(path.network_time)(t))

        def noised(x0: Image, eps: Image, t: Float[Array, "n"]) -> Image:
            patches = jax.vmap(path.interpolate)(_patches(x0, model.patch), _patches(eps, model.patch), t)
            return unpatchify(patches.reshape(len(t), -1), model.patch, *x0.shape[:2])

        conds = over_rows(cond)(draw.t, jnp.asarray(batch.label), draw.drop_label)
        x_t = over_rows(noised)(jnp.asarray(batch.image), draw.eps, draw.t)
        (prediction,) = model.forward_groups([Group(x_t, conds, views if kept < model.num_patches else None)])

        def errors(
            prediction: AbstractPrediction, x0: Image, eps: Image, t: Float[Array, "n"], view: View
        ) -> Float[Array, "terms"]:
            predicted, x0, eps = jax.tree.map(lambda image: _patches(image, model.patch), (prediction, x0, eps))
            hidden = hidden_patches(view)

            def term_error(term: Term) -> Scalar:
                difference = jax.vmap(lambda p, *truth: p.error(term.head, path, *truth))(predicted, x0, eps, t)
                squares = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
                m = {"all": jnp.ones_like(hidden), "hidden": hidden, "visible": 1.0 - hidden}[term.region]
                return jnp.mean(squares * m) / jnp.mean(m)

            return jnp.stack([term_error(term) for term in self.terms])

        found = over_rows(errors)(prediction, jnp.asarray(batch.image), draw.eps, draw.t, views)
        return self._plain.total(found)

    def require_suitable(self, model: AbstractModel, path: AbstractPath) -> None:
        """Raises `BadInput` naming `model` unless it has patches and accepts a time for each of them."""
        problem = None
        if not isinstance(model, AbstractPatchModel):
            problem = "has no patches to draw a time for"
        elif not model.accepts_patch_times:
            problem = "accepts one time for the whole image only"
        if problem is not None:
            hint = "Use a network with a time for each patch, such as the ViT with `model.conditioning=adaln`"
            raise BadInput("model", f"{type(model).__name__} {problem}", hint)

    def period(self, batch_size: int) -> int:
        """Always 1: all images are treated alike."""
        return 1

    def validate(self, num_patches: int, batch_size: int, field: str = "objective") -> None:
        """Raises `BadInput` as `MaskedDenoising` does, and for a share outside [0, 1]."""
        self._plain.validate(num_patches, batch_size, field)
        if not 0.0 <= self.shared_prob <= 1.0:
            raise BadInput(f"{field}.shared_prob", f"{self.shared_prob} is outside [0, 1]", "Give a share of images")


def _patches(image: Image, patch: int) -> Float[Array, "n patch patch c"]:
    return patchify(image, patch).reshape(-1, patch, patch, image.shape[-1])
