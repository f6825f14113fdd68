"""Generated images: samples by class at several guidance scales, and how they compare with real ones."""

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
from umd_eqx.core.programs import Program, abstract
from umd_eqx.core.sharding import batch_sharding, replicated, round_up_to_devices
from umd_eqx.core.types import NO_CLASS, Label, Report
from umd_eqx.eval.activations import BATCH, activate_batch
from umd_eqx.eval.base import AbstractEvaluator, EvalContext, Evaluate, decode_batch, decoded, require
from umd_eqx.eval.extractors import ExtractorName, choose_extractor, extractor_shapes
from umd_eqx.eval.generation_metrics import ReferenceStatistics, measure_generation, say_progress
from umd_eqx.eval.pictures import grid
from umd_eqx.eval.protocol import ADM50K, UMD10K, scale
from umd_eqx.models import AbstractModel
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.sampling import DDIM, AbstractDenoiser, AbstractSampler, guide, in_force, sample
from umd_eqx.sampling.batch import image_noise, sample_batch

PROTOCOLS = {"umd10k": UMD10K, "adm50k": ADM50K}
ProtocolName = Literal["umd10k", "adm50k"]

FILMS = 4
"""Rows of a film."""

SHOWN_CLASSES = 10
"""Rows of a picture of samples."""


@dataclasses.dataclass(frozen=True)
class Generation(AbstractEvaluator):
    """Samples at several guidance scales: pictures of a few from a fixed seed, and the metrics of many.

    `<protocol>/cfg<scale>/<metric>`: `fid`, `is`, `kid`, ... with Inception's features; `fd_fashion`, `is_fashion`, ...
    with the classifier that comes with the package, and `recognised`, the share of samples in which it sees the class
    that was asked for. A network without labels is sampled as it is, at `cfg1` only. The film is one sample coming out
    of the noise: the clean image as it is predicted at steps spread over the way.
    """

    every: int = 25_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "ema"
    """Which weights: raw, or their average where one is kept."""
    protocol: ProtocolName = "umd10k"
    """How it is measured: the paper's way or the field's."""
    samples: int = 10_240
    """How many samples are measured at each scale; another number than the protocol's is told by its name."""
    cfg_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Guidance scales; 1 is none."""
    sampler: AbstractSampler = dataclasses.field(default_factory=DDIM)
    """From noise to images."""
    batch_size: int = 64
    """Images sampled at once."""
    extractor: ExtractorName = "auto"
    """What features are compared in. auto: Inception where its weights are found, else what comes with the package."""
    inception_weights: str | None = None
    """A safetensors file (experiments/convert_inception.py makes it). None: where they are usually kept."""
    columns: int = 8
    """Samples of each class in a picture."""
    frames: int = 10
    """Pictures of a film."""

    @property
    def needs_noise(self) -> bool:
        """Samples come out of noise."""
        return True

    def validate(self, num_patches: int | None = None, field: str = "--eval.generation") -> None:
        """Raises `BadInput` for counts below what the metrics need, scales below 0, and a bad sampler."""
        enough = {"samples": self.samples >= 10, "batch_size": self.batch_size >= 1}
        require(self, field, enough, "Use more: 10 samples are the least that the metrics take")
        require(self, field, {"columns": self.columns >= 1, "frames": self.frames >= 1}, "Use 1 or more")
        fine = len(self.cfg_scales) > 0 and all(0.0 <= s < float("inf") for s in self.cfg_scales)
        require(self, field, {"cfg_scales": fine}, "Give one or more scales from 0 on; 1 is no guidance")
        self.sampler.validate(f"{field}.sampler")

    def build(self, context: EvalContext) -> Evaluate:
        """The measurement; the features of the real images are taken once, when they are first needed."""
        self.validate()
        protocol = scale(PROTOCOLS[self.protocol], self.samples)
        extractor = choose_extractor(
            self.extractor, self.inception_weights, context.train.spec, context.say, port=protocol.port
        )
        reference = ReferenceStatistics(context, protocol, extractor)

        def evaluate(model: AbstractModel, key: PRNGKeyArray) -> Report:
            scalars: dict[str, float] = {}
            images: dict[str, np.ndarray] = {}
            shown = _shown_labels(model, self.columns)
            denoiser, sampler = self._way(model, context)
            for cfg_scale in self.cfg_scales if model.num_classes is not None else (1.0,):
                name = f"cfg{cfg_scale:g}"
                guided = guide(denoiser, cfg_scale)
                draw = functools.partial(
                    sample, guided, sampler, key=key, batch_size=self.batch_size, mesh=context.mesh
                )
                context.phase(f"samples at guidance {cfg_scale:g}")
                pictures = decoded(context.tokenizer_or_identity, draw(shown), self.batch_size, context.mesh)
                images[name] = grid(_rows(np.concatenate(list(pictures)), self.columns))
                say = functools.partial(say_progress, context.phase, f"sampling at guidance {cfg_scale:g}")
                found = measure_generation(functools.partial(draw, progress=say), reference, model.num_classes)
                scalars |= {f"{protocol.name}/{name}/{metric}": value for metric, value in found.items()}
            best = guide(denoiser, 1.0 if model.num_classes is None else self.cfg_scales[len(self.cfg_scales) // 2])
            context.phase("a film of samples")
            images["film"] = film(
                best, sampler, context.tokenizer_or_identity, shown[:: self.columns][:FILMS], key, self.frames
            )
            return Report(scalars, images)

        return evaluate

    def display(self, data: str | None = None) -> Display:
        """How far samples are from real images, and how many are of the class asked for, by guidance."""
        named = r"(?P<protocol>.+)/(?P<line>cfg[0-9.]+)"
        distance = "Distance of the samples from real images ({metric}, {protocol})"
        charts = (
            Chart("distance", distance, rf"{named}/(?P<metric>fid|fd_\w+)"),
            Chart("recognised", "Samples recognised as the class asked for", rf"{named}/recognised", "share"),
        )
        captions = {
            f"cfg{scale:g}": f"Samples {how}, a class a row, always of the same noise"
            for scale in self.cfg_scales
            for how in ["without guidance" if scale == 1 else f"at guidance {scale:g}"]
        }
        captions["film"] = "Samples coming out of the noise: the clean image as it is predicted on the way"
        warning = (
            f"images of {data} are scored by a classifier of clothes (Fashion-MNIST), which says little of other "
            "images: compare these numbers with care, and only with each other"
        )
        return Display(
            (Section("Generation", charts),),
            captions,
            warned=r".+/fd_fashion",
            warning=None if data in (None, "fashion_mnist") else warning,
        )

    def programs(self, model: AbstractModel, context: EvalContext) -> dict[str, Program]:
        """Sampling of a batch under guidance, decoding of a batch, the film, and features of a batch."""
        everywhere, shared = replicated(context.mesh), batch_sharding(context.mesh)
        scales = () if model.num_classes is None else self.cfg_scales
        denoiser, sampler = self._way(model, context)
        guided = abstract(guide(denoiser, next((s for s in scales if s != 1.0), 1.0)), everywhere)
        key, film = abstract(jax.random.key(0)), jax.ShapeDtypeStruct((FILMS,), jnp.int32)
        index = jax.ShapeDtypeStruct((round_up_to_devices(self.batch_size, context.mesh),), jnp.int32, sharding=shared)
        decoded_at_once = round_up_to_devices(max(self.batch_size, context.batch_size), context.mesh)
        latents = jax.ShapeDtypeStruct((decoded_at_once, *model.image_shape), jnp.float32, sharding=shared)
        extractor = extractor_shapes(self.extractor, self.inception_weights, context.train.spec)
        levels = (round_up_to_devices(BATCH, context.mesh), *context.image_shapes.shape[1:])
        return {
            "sample": Program(sample_batch, (guided, sampler, key, index, index, None)),
            "decode": Program(decode_batch, (context.tokenizer_or_identity, latents, context.mesh)),
            "film": Program(_films, (guided, sampler, context.tokenizer_or_identity, film, key, self.frames)),
            "features": Program(
                activate_batch,
                (abstract(extractor, everywhere), jax.ShapeDtypeStruct(levels, jnp.uint8, sharding=shared)),
            ),
        }

    def _way(self, model: AbstractModel, context: EvalContext) -> tuple[AbstractDenoiser, AbstractSampler]:
        sampler = in_force(self.sampler, latents=context.tokenizer is not None)
        return sampler.denoiser(model, path_for(self.sampler, context.path)), sampler


def path_for(sampler: AbstractSampler, path: AbstractPath) -> AbstractPath:
    """The path that a sampler can go along: a table is smoothed for those that need rates."""
    if sampler.needs_rates and isinstance(path, AbstractDiscretePath):
        return smooth(path)
    return path


def film(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    tokenizer: AbstractTokenizer,
    labels: Int[np.ndarray, "count"],
    key: PRNGKeyArray,
    frames: int,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """A row for each label: the clean image as it is predicted, and decoded, at `frames` steps spread over the way."""
    shown = np.asarray(_films(denoiser, sampler, tokenizer, jnp.asarray(labels), key, frames))
    return grid([list(row) for row in shown])


@eqx.filter_jit
def _films(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    tokenizer: AbstractTokenizer,
    labels: Int[Array, "count"],
    key: PRNGKeyArray,
    frames: int,
) -> Float[Array, "count shown h w c"]:
    def one(index: Int[Array, ""], y: Label) -> Float[Array, "shown h w c"]:
        noise, rest = image_noise(key, index, denoiser.model.image_shape)  # that of `sample`: its first images
        steps = sampler.trajectory(denoiser.given(denoiser.model.cond(y)), noise, rest)[1]
        # Chosen before they are decoded: of hundreds of steps a dozen are shown.
        picked = np.unique(np.linspace(0, len(steps) - 1, frames).round().astype(int))
        return jax.lax.map(tokenizer.decode, steps[picked])

    return jax.vmap(one)(jnp.arange(len(labels)), labels)


def _shown_labels(model: AbstractModel, columns: int) -> Int[np.ndarray, "rows_columns"]:
    classes = model.num_classes
    rows = np.full(4, NO_CLASS) if classes is None else np.arange(min(classes, SHOWN_CLASSES)) * max(classes // 10, 1)
    return np.repeat(rows, columns)


def _rows(images: Float[np.ndarray, "n h w c"], columns: int) -> list[list[Float[np.ndarray, "h w c"]]]:
    return [list(images[start : start + columns]) for start in range(0, len(images), columns)]
