"""Evaluation of generation: image grids and metrics of samples at several guidance scales."""

import dataclasses
import functools
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.core.paths import AbstractDiscretePath, AbstractPath, smooth
from umd_eqx.core.processes import to_host
from umd_eqx.core.programs import Program, abstract
from umd_eqx.core.sharding import batch_sharding, replicated, round_up_to_devices
from umd_eqx.core.types import NO_CLASS, Label, Report
from umd_eqx.eval.activations import BATCH, activate_batch
from umd_eqx.eval.base import AbstractEvaluator, EvalContext, Evaluate, decode_batch, decoded, require
from umd_eqx.eval.extractors import ExtractorName, choose_extractor, domain_warning, extractor_shapes
from umd_eqx.eval.generation_metrics import ReferenceStatistics, measure_generation, report_progress
from umd_eqx.eval.measure import HIGHER_IS_BETTER, LOWER_IS_BETTER
from umd_eqx.eval.pictures import grid
from umd_eqx.eval.protocol import ADM50K, UMD10K, UMD50K, scale
from umd_eqx.models import AbstractModel
from umd_eqx.models.extractors.classifier import FashionClassifier
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.sampling import DDIM, AbstractDenoiser, AbstractSampler, effective_sampler, guide, sample
from umd_eqx.sampling.batch import image_noise, sample_batch

PROTOCOLS = {"umd10k": UMD10K, "umd50k": UMD50K, "adm50k": ADM50K}
ProtocolName = Literal["umd10k", "umd50k", "adm50k"]

LOGGED_TRAJECTORIES = 4
"""Number of denoising trajectories in the image grid that an evaluation logs."""

SHOWN_CLASSES = 10
"""Rows of an image grid of samples, one class each."""


@dataclasses.dataclass(frozen=True)
class Generation(AbstractEvaluator):
    """Samples at several guidance scales: image grids of a few from a fixed seed, and metrics of many.

    The metrics are named `<protocol>/cfg<scale>/<metric>`: `fid`, `is`, `kid`, ... with Inception's features;
    `fd_fashion`, `is_fashion`, ... with the classifier that comes with the package, and `recognised`, the fraction of
    samples that it assigns to the requested class. A network without labels is sampled unconditionally, as `cfg1` only.
    The image grid `trajectories` shows the predicted clean image at evenly spaced sampling steps.
    """

    every: int = 25_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "ema"
    """Which weights to evaluate: raw, or their moving average if the run has one."""
    protocol: ProtocolName = "umd10k"
    """Evaluation protocol: umd10k is that of the UMD paper, umd50k that of its benchmark, and adm50k that of ADM, which
    most papers use."""
    samples: int = 10_240
    """Number of samples per guidance scale. A number other than the protocol's is added to its name (umd10k@500)."""
    cfg_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Scales of classifier-free guidance; 1 is no guidance."""
    sampler: AbstractSampler = dataclasses.field(default_factory=DDIM)
    """The sampler and its settings."""
    batch_size: int = 64
    """Number of images that are sampled at once."""
    extractor: ExtractorName = "auto"
    """The network whose features are compared. auto: the classifier that comes with the package for Fashion-MNIST; for
    other data Inception if its weights are found, else the classifier."""
    inception_weights: str | None = None
    """A safetensors file with Inception's weights, written by experiments/convert_inception.py. None: the default
    location."""
    statistics: str | None = None
    """File of the statistics of the real images (experiments/reference_statistics.py). None: they are computed."""
    columns: int = 8
    """Samples per class in an image grid."""
    frames: int = 10
    """Number of steps shown of each denoising trajectory."""

    @property
    def needs_noise(self) -> bool:
        """Always True: sampling starts from noise."""
        return True

    def validate(self, num_patches: int | None = None, field: str = "eval.generation") -> None:
        """Raises `BadInput` for counts below what the metrics need, scales below 0, and an invalid sampler."""
        enough = {"samples": self.samples >= 10, "batch_size": self.batch_size >= 1}
        require(self, field, enough, "Use more: the metrics need at least 10 samples")
        require(self, field, {"columns": self.columns >= 1, "frames": self.frames >= 1}, "Use 1 or more")
        fine = len(self.cfg_scales) > 0 and all(0.0 <= s < float("inf") for s in self.cfg_scales)
        require(self, field, {"cfg_scales": fine}, "Use one or more scales of at least 0; 1 is no guidance")
        self.sampler.validate(f"{field}.sampler")
        possible = self.sampler.supports_guidance or self.cfg_scales == (1.0,)
        require(self, field, {"cfg_scales": possible}, f"{type(self.sampler).__name__} requires the scale 1")

    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function, which computes the features of the real images once, when first needed."""
        self.validate()
        protocol = scale(PROTOCOLS[self.protocol], self.samples)
        extractor = choose_extractor(
            self.extractor, self.inception_weights, context.train.spec, context.notify, port=protocol.port
        )
        reference = ReferenceStatistics(context, protocol, extractor, self.statistics, "eval.generation.statistics")
        if self.statistics is not None:
            _ = reference.real  # a file that does not fit is refused before training

        def evaluate(model: AbstractModel, key: PRNGKeyArray) -> Report:
            scalars: dict[str, float] = {}
            images: dict[str, np.ndarray] = {}
            shown = _shown_labels(model, self.columns)
            denoiser, sampler = self._denoiser_and_sampler(model, context)
            for cfg_scale in self.cfg_scales if model.num_classes is not None else (1.0,):
                name = f"cfg{cfg_scale:g}"
                guided = guide(denoiser, cfg_scale)
                generate = functools.partial(
                    sample, guided, sampler, key=key, batch_size=self.batch_size, mesh=context.mesh
                )
                context.phase(f"samples at guidance {cfg_scale:g}")
                pictures = decoded(context.tokenizer_or_identity, generate(shown), self.batch_size, context.mesh)
                images[name] = grid(_rows(np.concatenate(list(pictures)), self.columns))
                progress = functools.partial(report_progress, context.phase, f"sampling at guidance {cfg_scale:g}")
                found = measure_generation(functools.partial(generate, progress=progress), reference, model.num_classes)
                scalars |= {f"{protocol.name}/{name}/{metric}": value for metric, value in found.items()}
            best = guide(denoiser, 1.0 if model.num_classes is None else self.cfg_scales[len(self.cfg_scales) // 2])
            context.phase("denoising trajectories")
            images["trajectories"] = trajectory_grid(
                best,
                sampler,
                context.tokenizer_or_identity,
                shown[:: self.columns][:LOGGED_TRAJECTORIES],
                key,
                self.frames,
            )
            return Report(scalars, images)

        return evaluate

    def display(self, data: str | None = None) -> Display:
        """Returns charts of the distance and the recognised fraction of samples for each guidance scale."""
        named = r"(?P<protocol>.+)/(?P<line>cfg[0-9.]+)"
        distance = "Distance of the samples from real images ({metric}, {protocol})"
        charts = (
            Chart("distance", distance, rf"{named}/(?P<metric>fid|fd_\w+)"),
            Chart("recognised", "Samples recognised as the requested class", rf"{named}/recognised", "share"),
        )
        captions = {
            f"cfg{scale:g}": f"Samples {how}, one class per row, always from the same noise"
            for scale in self.cfg_scales
            for how in ["without guidance" if scale == 1 else f"at guidance {scale:g}"]
        }
        captions["trajectories"] = "Denoising trajectories: the predicted clean image at evenly spaced sampling steps"
        captions["film"] = captions["trajectories"]  # the name in older runs
        return Display(
            (Section("Generation", charts),),
            captions,
            higher=HIGHER_IS_BETTER,
            lower=LOWER_IS_BETTER,
            warned=r".+/fd_fashion",
            warning=None if data is None else domain_warning(FashionClassifier, data),
        )

    def programs(self, model: AbstractModel, context: EvalContext) -> dict[str, Program]:
        """Returns guided sampling, decoding and feature extraction of a batch, and the denoising trajectories."""
        everywhere, shared = replicated(context.mesh), batch_sharding(context.mesh)
        scales = () if model.num_classes is None else self.cfg_scales
        denoiser, sampler = self._denoiser_and_sampler(model, context)
        guided = abstract(guide(denoiser, next((s for s in scales if s != 1.0), 1.0)), everywhere)
        key, labels = abstract(jax.random.key(0)), jax.ShapeDtypeStruct((LOGGED_TRAJECTORIES,), jnp.int32)
        index = jax.ShapeDtypeStruct((round_up_to_devices(self.batch_size, context.mesh),), jnp.int32, sharding=shared)
        decoded_at_once = round_up_to_devices(max(self.batch_size, context.batch_size), context.mesh)
        latents = jax.ShapeDtypeStruct((decoded_at_once, *model.image_shape), jnp.float32, sharding=shared)
        extractor = extractor_shapes(self.extractor, self.inception_weights, context.train.spec)
        levels = (round_up_to_devices(BATCH, context.mesh), *context.image_shapes.shape[1:])
        return {
            "sample": Program(sample_batch, (guided, sampler, key, index, index, None)),
            "decode": Program(decode_batch, (context.tokenizer_or_identity, latents, context.mesh)),
            "trajectories": Program(
                _trajectories, (guided, sampler, context.tokenizer_or_identity, labels, key, self.frames)
            ),
            "features": Program(
                activate_batch,
                (abstract(extractor, everywhere), jax.ShapeDtypeStruct(levels, jnp.uint8, sharding=shared)),
            ),
        }

    def _denoiser_and_sampler(
        self, model: AbstractModel, context: EvalContext
    ) -> tuple[AbstractDenoiser, AbstractSampler]:
        sampler = effective_sampler(self.sampler, latents=context.tokenizer is not None)
        return sampler.denoiser(model, path_for(self.sampler, context.path)), sampler


def path_for(sampler: AbstractSampler, path: AbstractPath) -> AbstractPath:
    """Returns the path for a sampler: a discrete path is smoothed if the sampler needs its derivatives."""
    if sampler.needs_rates and isinstance(path, AbstractDiscretePath):
        return smooth(path)
    return path


def trajectory_grid(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    tokenizer: AbstractTokenizer,
    labels: Int[np.ndarray, "count"],
    key: PRNGKeyArray,
    frames: int,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Returns an image grid of denoising trajectories, one row per label.

    A row has the decoded prediction of the clean image at `frames` evenly spaced sampling steps.
    """
    shown = to_host(_trajectories(denoiser, sampler, tokenizer, jnp.asarray(labels), key, frames))
    return grid([list(row) for row in shown])


@eqx.filter_jit
def _trajectories(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    tokenizer: AbstractTokenizer,
    labels: Int[Array, "count"],
    key: PRNGKeyArray,
    frames: int,
) -> Float[Array, "count shown h w c"]:
    def one(index: Int[Array, ""], y: Label) -> Float[Array, "shown h w c"]:
        noise, rest = image_noise(key, index, denoiser.model.image_shape)  # as for the first images of `sample`
        steps = sampler.trajectory(denoiser.with_cond(denoiser.model.cond(y)), noise, rest)[1]
        # Selected before decoding: only about a dozen of hundreds of steps are shown.
        picked = np.unique(np.linspace(0, len(steps) - 1, frames).round().astype(int))
        return jax.lax.map(tokenizer.decode, steps[picked])

    return jax.vmap(one)(jnp.arange(len(labels)), labels)


def _shown_labels(model: AbstractModel, columns: int) -> Int[np.ndarray, "rows_columns"]:
    classes = model.num_classes
    rows = np.full(4, NO_CLASS) if classes is None else np.arange(min(classes, SHOWN_CLASSES)) * max(classes // 10, 1)
    return np.repeat(rows, columns)


def _rows(images: Float[np.ndarray, "n h w c"], columns: int) -> list[list[Float[np.ndarray, "h w c"]]]:
    return [list(images[start : start + columns]) for start in range(0, len(images), columns)]
