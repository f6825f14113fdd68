"""Errors of the predicted clean image and noise at each noise level, with an image grid."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.core.errors import member
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.processes import to_host
from umd_eqx.core.programs import Program
from umd_eqx.core.sharding import chunked_vmap
from umd_eqx.core.types import Image, Label, Report, Scalar
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
from umd_eqx.models import AbstractModel
from umd_eqx.models.tokenizers.base import AbstractTokenizer


@dataclasses.dataclass(frozen=True)
class Denoising(AbstractEvaluator):
    """Denoising error of test images with every patch visible, conditioned on labels if the network supports them.

    `x0/tX` and `eps/tX` are the mean squared errors of the clean image and of the noise at time X of the path, written
    with at least two decimals (`t0.50`). Each row of the image grid has a test image, then for each level the noised
    image and the clean image computed from the predicted noise. `x0` is left out if the objective trains the x0 head on
    hidden patches only (UMD, MaskDiT), because every patch is visible here. A network on latents receives noised
    latents, and its predicted clean latents are decoded: `x0` and the grid are in pixels, `eps` is in latents.
    """

    every: int = 25_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights to evaluate: raw, or their moving average if the run has one."""
    levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Noise levels: times of the path, in (0, 1)."""
    images: int = 512
    """Number of test images."""
    pictures: int = 6
    """Number of test images in the image grid."""
    shown_levels: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Noise levels in the image grid, a subset of `levels`."""

    def validate(self, num_patches: int | None = None, field: str = "eval.denoising") -> None:
        """Raises `BadInput` for counts below 1, and for levels that are missing, repeated or outside (0, 1)."""
        require(self, field, {"images": self.images >= 1, "pictures": self.pictures >= 1}, "Use 1 or more")
        inside = len(self.levels) > 0 and all(0.0 < level < 1.0 for level in self.levels)
        once = len(set(self.levels)) == len(self.levels)
        require(self, field, {"levels": inside and once}, "Give one or more times in (0, 1), each once")
        shown = len(self.shown_levels) > 0 and set(self.shown_levels) <= set(self.levels)
        require(self, field, {"shown_levels": shown}, f"Choose among `{member(field, 'levels')}`")

    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function, on images spread evenly over the test split."""
        self.validate()
        indices = evenly_spaced(self.images, len(context.test))
        heads = ("x0", "eps") if context.objective is None or context.objective.predicts_visible_x0 else ("eps",)

        def evaluate(model: AbstractModel, key: PRNGKeyArray) -> Report:
            scalars, columns = {}, []
            for i, level in enumerate(self.levels):
                errors, valid, shown = [], [], []
                keys = jax.random.fold_in(key, i)
                batches = context.images("test", indices)
                for batch, rows in zip(batches, batch_rows(indices, context.batch_size), strict=True):
                    images, labels = jnp.asarray(batch.image), jnp.asarray(batch.label)
                    given = (images, labels, jnp.asarray(level), image_keys(keys, rows), context.mesh)
                    error, pictures = _denoise(model, context.tokenizer_or_identity, context.path, *given)
                    errors.append(np.stack(to_host(error), axis=1))
                    valid.append(to_host(batch.valid))
                    shown += pick(pictures, valid[-1], self.pictures - len(shown))
                x0, eps = weighted_mean(np.concatenate(errors), np.concatenate(valid))
                means = {"x0": float(x0), "eps": float(eps)}
                scalars |= {f"{head}/{level_name(level)}": means[head] for head in heads}
                if level in self.shown_levels:
                    columns += list(zip(*shown, strict=True))[1 if columns else 0 :]
            return Report(scalars, {"pictures": grid(list(zip(*columns, strict=True)))} if columns else {})

        return evaluate

    def display(self, data: str | None = None) -> Display:
        """Returns a chart of the error of each head against the noise level."""
        pattern, x_label = r"(?P<line>.+)/t(?P<x>[0-9]*\.?[0-9]+)", "noise level t  (0 clean, 1 noise)"
        chart = Chart("denoising", "Squared error", pattern, x_label=x_label, folded="by noise level")
        caption = "Denoising. In each row: image, then noised and denoised, at growing noise levels"
        return Display((Section("Denoising", (chart,)),), {"pictures": caption}, lower=pattern)

    def programs(self, model: AbstractModel, context: EvalContext) -> dict[str, Program]:
        """Returns the denoising of one batch at one level."""
        images, labels, t = context.image_shapes, context.label_shapes, jax.ShapeDtypeStruct((), jnp.float32)
        given = (images, labels, t, context.key_shapes, context.mesh)
        return {"denoise": Program(_denoise, (model, context.tokenizer_or_identity, context.path, *given))}


def level_name(level: float) -> str:
    """Returns the unique logged name of a noise level, with at least two decimals, such as t0.50 or t0.051."""
    return f"t{np.format_float_positional(level, min_digits=2)}"


@eqx.filter_jit
def _denoise(
    model: AbstractModel,
    tokenizer: AbstractTokenizer,
    path: AbstractPath,
    images: Float[Array, "b h w c"],
    labels: Int[Array, "b"],
    t: Float[Array, ""],
    keys: Key[Array, "b"],
    mesh: Mesh,
) -> tuple[tuple[Float[Array, "b"], Float[Array, "b"]], tuple[Float[Array, "b h w c"], ...]]:
    def one(image: Image, label: Label, key: PRNGKeyArray) -> tuple[tuple[Scalar, Scalar], tuple[Image, ...]]:
        x0 = tokenizer.encode(image).mode()
        eps = jax.random.normal(key, x0.shape)
        x_t = path.interpolate(x0, eps, t)
        prediction = model(x_t, model.cond(label).at(path.network_time(t)))
        predicted = tokenizer.decode(prediction.read("x0", path, x_t, t))
        errors = jnp.mean((predicted - image) ** 2), jnp.mean((prediction.read("eps", path, x_t, t) - eps) ** 2)
        # From the predicted noise, as the reference samples: a mask leaves the x0 head untrained on visible patches.
        clean = prediction.denoised("eps", path, x_t, t).x0
        return errors, (image, tokenizer.decode(x_t), tokenizer.decode(clean))

    return chunked_vmap(lambda given: one(*given), (images, labels, keys), mesh)
