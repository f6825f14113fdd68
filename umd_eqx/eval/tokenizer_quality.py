"""Reconstruction error of a tokenizer, and statistics of its latents and codes."""

import dataclasses
import math
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from umd_eqx.core.display import Display
from umd_eqx.core.processes import to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import chunked_vmap
from umd_eqx.core.types import Image, Report
from umd_eqx.eval.base import AbstractEvaluator, EvalContext, Evaluate, evenly_spaced, require, weighted_mean
from umd_eqx.eval.pictures import grid, pick
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.models.tokenizers.fsq import FSQ


@dataclasses.dataclass(frozen=True)
class TokenizerQuality(AbstractEvaluator):
    """Reconstruction of test images by a tokenizer, from their posterior modes.

    `error` is the mean squared error of pixels in [-1, 1] and `psnr` the same in decibels; `latent_mean` and
    `latent_std` are over all values of all latents. With a codebook, `codes_used` is the fraction of its codes that
    these images use, and `perplexity` is that of the distribution of codes. The image grid has each image above its
    reconstruction.
    """

    every: int = 25_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "ema"
    """Which weights to evaluate: raw, or their moving average if the run has one."""
    images: int = 10_000
    """Number of test images."""
    pictures: int = 16
    """Number of test images in the image grid."""

    def validate(self, num_patches: int | None = None, field: str = "eval.tokenizer") -> None:
        """Raises `BadInput` for counts below 1."""
        require(self, field, {"images": self.images >= 1, "pictures": self.pictures >= 1}, "Use 1 or more")

    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function, on images spread evenly over the test split."""
        self.validate()
        indices = evenly_spaced(self.images, len(context.test))

        def evaluate(model: AbstractTokenizer, key: PRNGKeyArray) -> Report:
            sums, valid, shown, codes = [], [], [], []
            for batch in context.images("test", indices):
                images = jnp.asarray(batch.image)
                back, moments, indexed = _round_trip(model, images, context.mesh)
                valid.append(to_host(batch.valid))
                sums.append(to_host(moments))
                if indexed is not None:
                    codes.append(to_host(indexed)[valid[-1]].ravel())
                shown += pick((images, back), valid[-1], self.pictures - len(shown))
            error, mean, square = weighted_mean(np.concatenate(sums), np.concatenate(valid))
            scalars = {
                "error": float(error),
                "psnr": 10.0 * math.log10(4.0 / max(float(error), 1e-12)),  # the width of [-1, 1] is 2
                "latent_mean": float(mean),
                "latent_std": math.sqrt(max(float(square - mean**2), 0.0)),
            }
            if codes and isinstance(model, FSQ):
                scalars |= codebook_use(np.concatenate(codes), model.codebook_size)
            columns = list(zip(*shown, strict=True))
            return Report(scalars, {"pictures": grid(columns)} if columns else {})

        return evaluate

    def display(self, data: str | None = None) -> Display:
        """Returns a caption of the image grid; the scalars are in the report's table."""
        caption = "Images, and below each its reconstruction from the latent"
        return Display(captions={"pictures": caption}, higher="psnr|codes_used|perplexity", lower="error")

    def programs(self, model: AbstractTokenizer, context: EvalContext) -> dict[str, Program]:
        """Returns the encoding and decoding of one batch."""
        return {"encode and decode": Program(_round_trip, (model, context.image_shapes, context.mesh))}


def codebook_use(codes: Int[np.ndarray, "n"], size: int) -> dict[str, float]:
    """Returns `codes_used`, the fraction of a codebook of `size` among `codes`, and their `perplexity`, 1 .. size."""
    share = np.bincount(codes, minlength=size) / max(len(codes), 1)
    some = share[share > 0]
    return {"codes_used": len(some) / size, "perplexity": float(np.exp(-np.sum(some * np.log(some))))}


@eqx.filter_jit
def _round_trip(
    model: AbstractTokenizer, images: Float[Array, "b h w c"], mesh: Mesh
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 3"], Int[Array, "b lh lw"] | None]:
    def one(image: Image) -> tuple[Image, Float[Array, "3"], Int[Array, "lh lw"] | None]:
        z = model.encode_raw(image).mode()
        back = model.decode_raw(z)
        moments = jnp.stack([jnp.mean((back - image) ** 2), jnp.mean(z), jnp.mean(z**2)])
        return back, moments, model.indices(z) if isinstance(model, FSQ) else None

    return chunked_vmap(one, images, mesh)
