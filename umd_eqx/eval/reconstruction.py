"""Reconstruction error of hidden patches of clean images, with an image grid."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PRNGKeyArray

from umd_eqx.core.display import Display
from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import View, draw_order, hidden_pixels, num_kept, ratios
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.processes import to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import chunked_vmap
from umd_eqx.core.types import Image, Report, Scalar
from umd_eqx.eval.base import (
    AbstractEvaluator,
    EvalContext,
    Evaluate,
    batch_rows,
    evenly_spaced,
    image_keys,
    require,
    weighted_mean,
)
from umd_eqx.eval.pictures import grid, pick
from umd_eqx.models import AbstractPatchModel
from umd_eqx.models.tokenizers.base import AbstractTokenizer


@dataclasses.dataclass(frozen=True)
class Reconstruction(AbstractEvaluator):
    """Masked reconstruction of test images: `error` is the mean squared error on hidden pixels in [-1, 1].

    Each column of the image grid has the image, its visible patches, the prediction, and the image with the prediction
    in its hidden patches. The predicted latents of a network on latents are decoded together with the true visible
    latents: `error` is that of the pixels under the hidden latents, and `latent_error` that of the latents.
    """

    every: int = 25_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights to evaluate: raw, or their moving average if the run has one."""
    mask_ratio: float = 0.75
    """Fraction of the patches that is hidden from the encoder."""
    images: int = 1024
    """Number of test images."""
    pictures: int = 12
    """Number of test images in the image grid."""

    def validate(self, num_patches: int | None = None, field: str = "eval.reconstruction") -> None:
        """Raises `BadInput` for counts below 1, and for a mask ratio that hides no patch or all of them."""
        require(self, field, {"images": self.images >= 1, "pictures": self.pictures >= 1}, "Use 1 or more")
        hint = "Use a fraction in (0, 1)"
        some = 0.0 < self.mask_ratio < 1.0
        if num_patches == 1:
            hint = "Leave it out, or choose a network with a smaller patch, or a larger `data.size`"
            raise BadInput(field, "an image is a single patch for this network, which cannot be hidden", hint)
        if num_patches is not None:
            least, most = ratios(num_patches)
            hint = f"Use {least:g}, which hides one patch of {num_patches}, to {most:g}, which leaves one visible"
            some = some and 0 < num_kept(num_patches, self.mask_ratio) < num_patches
        require(self, field, {"mask_ratio": some}, hint)

    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function, on images spread evenly over the test split."""
        self.validate()
        indices = evenly_spaced(self.images, len(context.test))

        def evaluate(model: AbstractPatchModel, key: PRNGKeyArray) -> Report:
            errors, valid, shown = [], [], []
            batches = context.images("test", indices)
            for batch, rows in zip(batches, batch_rows(indices, context.batch_size), strict=True):
                given = (jnp.asarray(batch.image), image_keys(key, rows), self.mask_ratio, context.mesh)
                error, pictures = _reconstruct(model, context.tokenizer_or_identity, context.path, *given)
                errors.append(to_host(error))
                valid.append(to_host(batch.valid))
                shown += pick(pictures, valid[-1], self.pictures - len(shown))
            pixels, latents = weighted_mean(np.concatenate(errors), np.concatenate(valid))
            columns = list(zip(*shown, strict=True))
            scalars = {"error": float(pixels)}
            if context.tokenizer is not None:
                scalars["latent_error"] = float(latents)
            return Report(scalars, {"pictures": grid(columns)} if columns else {})

        return evaluate

    def display(self, data: str | None = None) -> Display:
        """Returns a caption of the image grid; the scalars are in the report's table."""
        caption = "Masked reconstruction. Rows: image, visible patches, prediction, image with predicted hidden patches"
        return Display(captions={"pictures": caption}, lower="(latent_)?error")

    def programs(self, model: AbstractPatchModel, context: EvalContext) -> dict[str, Program]:
        """Returns the reconstruction of one batch."""
        given = (context.image_shapes, context.key_shapes, self.mask_ratio, context.mesh)
        return {"reconstruct": Program(_reconstruct, (model, context.tokenizer_or_identity, context.path, *given))}


@eqx.filter_jit
def _reconstruct(
    model: AbstractPatchModel,
    tokenizer: AbstractTokenizer,
    path: AbstractPath,
    images: Float[Array, "b h w c"],
    keys: Key[Array, "b"],
    mask_ratio: float,
    mesh: Mesh,
) -> tuple[Float[Array, "b 2"], tuple[Float[Array, "b h w c"], ...]]:
    def one(image: Image, key: PRNGKeyArray) -> tuple[Float[Array, "2"], tuple[Image, ...]]:
        x0 = tokenizer.encode(image).mode()
        view = View(draw_order(key, model.num_patches), num_kept(model.num_patches, mask_ratio))
        prediction = model(x0, model.cond(), view).read("x0", path, x0, jnp.asarray(0.0))
        m = hidden_pixels(view, x0, model.patch)
        combined = tokenizer.decode(x0 * (1.0 - m) + prediction * m)
        m_image = hidden_pixels(view, image, model.patch * tokenizer.factor)
        pictures = (image, image * (1.0 - m_image), tokenizer.decode(prediction), combined)
        return jnp.stack([_on_hidden(combined - image, m_image), _on_hidden(prediction - x0, m)]), pictures

    return chunked_vmap(lambda given: one(*given), (images, keys), mesh)


def _on_hidden(difference: Image, m: Float[Array, "h w 1"]) -> Scalar:
    return jnp.mean(difference**2 * m) / jnp.mean(m)
