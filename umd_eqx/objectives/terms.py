"""Masked denoising, defined by a table of terms: which quantity is predicted on which patches, with which weight."""

from typing import Annotated, Any, Literal

import equinox as eqx
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import View, hidden_pixels, num_kept, ratios
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.predictions import LEARNED_WITHOUT_NOISE, AbstractPrediction, Head
from umd_eqx.core.types import NO_CLASS, Batch, Image, Metrics, Scalar, Time
from umd_eqx.models import AbstractModel, AbstractPatchModel, Group, num_patches_of
from umd_eqx.models.base import over_rows
from umd_eqx.objectives.base import AbstractObjective, Draw, draw_noised, in_rows, mark_invalid_labels


class Term(eqx.Module):
    """The squared error of one quantity, averaged over one region of the image, times a weight.

    `head` is "x0" (the clean image), "eps" (the noise) or "v"; if the network has no output for it, it is computed by
    means of the path (`AbstractPrediction.error`). `region` is "visible", "hidden" or "all" patches.
    """

    head: Head = eqx.field(static=True)
    region: Literal["visible", "hidden", "all"] = eqx.field(static=True)
    weight: float = eqx.field(static=True)

    @property
    def name(self) -> str:
        """The name under which the term is logged."""
        return f"{self.head}_{self.region}"


class MaskedDenoising(AbstractObjective):
    """Prediction from the visible patches of noised or clean images: MAE, DiT and MaskDiT, by their tables of terms."""

    terms: Annotated[tuple[Term, ...], tyro.conf.Suppress] = eqx.field(static=True)
    mask_ratio: float = eqx.field(static=True)
    """Share of the patches that are hidden from the encoder, in [0, 1)."""
    noised: Annotated[bool, tyro.conf.Suppress] = eqx.field(static=True, default=True)
    label_dropout: float = eqx.field(static=True, default=0.1)
    """Probability that the label of a noised image is replaced by `NO_CLASS` (for classifier-free guidance)."""

    @property
    def denoises(self) -> bool:
        """Whether images are noised."""
        return self.noised

    @property
    def sees_clean_images(self) -> bool:
        """Whether images are not noised."""
        return not self.noised

    @property
    def hides(self) -> bool:
        """Whether patches are hidden, that is, whether `mask_ratio` is positive."""
        return self.mask_ratio > 0

    @property
    def predicts_visible_x0(self) -> bool:
        """Whether a term compares x0 or v with the truth on visible patches of noised images."""
        return self.noised and any(term.head != "eps" and term.region != "hidden" for term in self.terms)

    def draw(self, key: PRNGKeyArray, model: AbstractModel, path: AbstractPath, shape: tuple[int, ...]) -> Draw:
        """Draws the times, the noise, the order of the patches, and which labels are dropped."""
        return draw_noised(key, path, shape, num_patches_of(model), self.label_dropout)

    def loss(self, model: AbstractModel, path: AbstractPath, batch: Batch, draw: Draw) -> tuple[Scalar, Metrics]:
        """Returns the weighted sum of the terms, and the unweighted terms by name, each a mean over the batch."""
        batch, draw = in_rows((batch, draw), batch.image.shape[0])
        (prediction,) = model.forward_groups([self.group(model, path, batch, draw)])
        return self.total(self.errors(model, path, prediction, batch, draw))

    def group(self, model: AbstractModel, path: AbstractPath, batch: Batch, draw: Draw) -> Group:
        """Returns the inputs of the network for a batch in rows: images (noised or clean), conditioning and views.

        The predictions are NaN for a label that is not a class of the network.
        """
        n = num_patches_of(model)
        kept = num_kept(n, self.mask_ratio)
        views = over_rows(lambda order: View(order, kept))(draw.order) if kept < n else None
        no_class = jnp.full_like(batch.label, NO_CLASS)
        if not self.noised:
            return Group(jnp.asarray(batch.image), over_rows(model.cond)(no_class), views)
        x_t = over_rows(path.interpolate)(batch.image, draw.eps, draw.t)
        y = jnp.where(draw.drop_label, no_class, mark_invalid_labels(jnp.asarray(batch.label), model.num_classes))
        conds = over_rows(lambda y, t: model.cond(y).at(path.network_time(t)))(y, draw.t)
        return Group(x_t, conds, views)

    def errors(
        self, model: AbstractModel, path: AbstractPath, prediction: AbstractPrediction, batch: Batch, draw: Draw
    ) -> Float[Array, "rows count terms"]:
        """Returns the unweighted squared error of each term, for each image of a batch in rows."""
        kept = num_kept(num_patches_of(model), self.mask_ratio)

        def of_image(
            prediction: AbstractPrediction, x0: Image, t: Time, eps: Image, order: Array
        ) -> Float[Array, "terms"]:
            hidden = jnp.zeros((*x0.shape[:2], 1), x0.dtype)
            if isinstance(model, AbstractPatchModel):
                hidden = hidden_pixels(View(order, kept), x0, model.patch)
            errors = (prediction.error(term.head, path, x0, eps, t) for term in self.terms)
            return jnp.stack([_mean_square(d, term, hidden) for d, term in zip(errors, self.terms, strict=True)])

        return over_rows(of_image)(prediction, batch.image, draw.t, draw.eps, draw.order)

    def total(self, errors: Float[Array, "rows count terms"]) -> tuple[Scalar, Metrics]:
        """Returns the weighted sum of the means of the terms over all images, and these means by name."""
        means = jnp.mean(errors.reshape(-1, len(self.terms)), axis=0)
        metrics = {term.name: mean for term, mean in zip(self.terms, means, strict=True)}
        return jnp.dot(jnp.asarray([term.weight for term in self.terms], means.dtype), means), metrics

    def require_suitable(self, model: Any, path: AbstractPath) -> None:
        """Raises `BadInput` if the network does not predict images, or cannot learn its prediction from clean ones."""
        if not isinstance(model, AbstractModel):
            raise BadInput("model", f"{type(model).__name__} does not predict images", "Use a network that does")
        if not self.noised and model.prediction not in LEARNED_WITHOUT_NOISE:
            problem = f"{model.prediction} cannot be learned on images without noise"
            raise BadInput("model.prediction", problem, "Use x0 or x0_eps, or an objective that noises images")

    def period(self, batch_size: int) -> int:
        """Always 1: all images are treated alike."""
        return 1

    def validate(self, num_patches: int, batch_size: int, field: str = "objective") -> None:
        """Raises `BadInput` if the mask ratio leaves no visible patch, or no patch in the region of a term."""
        subject = f"{field}.mask_ratio"
        if not 0.0 <= self.mask_ratio < 1.0:
            raise BadInput(subject, f"{self.mask_ratio} is outside [0, 1)", "Give the share of patches to hide")
        if not 0.0 <= self.label_dropout <= 1.0:
            raise BadInput(f"{field}.label_dropout", f"{self.label_dropout} is outside [0, 1]", "Give a probability")
        regions = {term.region for term in self.terms}
        if num_patches == 1 and ("hidden" in regions or self.mask_ratio > 0):
            hint = "Use an objective without masking, a network with a smaller patch, or a larger `data.size`"
            raise BadInput(subject, "an image is a single patch for this network, which cannot be hidden", hint)
        kept = num_kept(num_patches, self.mask_ratio)
        if kept == 0:
            hint = f"Use at most {ratios(num_patches)[1]:g}, which leaves one visible"
            raise BadInput(subject, f"{self.mask_ratio} hides all {num_patches} patches of an image", hint)
        if kept == num_patches and "hidden" in regions:
            name = next(term.name for term in self.terms if term.region == "hidden")
            hint = f"Use at least {ratios(num_patches)[0]:g}, or a preset without that term (dit)"
            raise BadInput(
                subject, f"{self.mask_ratio} hides no patch, but the term {name} requires hidden patches", hint
            )


def _mean_square(difference: Image, term: Term, hidden: Float[Array, "h w 1"]) -> Scalar:
    # mean(error^2 m) / mean(m) with m = 1 on the term's region, as in the reference.
    match term.region:
        case "all":
            return jnp.mean(difference**2)
        case "hidden":
            m = hidden
        case "visible":
            m = 1.0 - hidden
    return jnp.mean(difference**2 * m) / jnp.mean(m)
