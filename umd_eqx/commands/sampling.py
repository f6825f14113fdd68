"""The sampling flags shared by `sample.py` and `evaluate.py`, and the guided denoiser that they define."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated

import tyro

from umd_eqx.commands.leaves import KINDS, Kinds, name_of, with_types
from umd_eqx.core.bounds import require_bounded_floats, require_bounded_integers
from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import same_tokenizer
from umd_eqx.eval.generation import path_for
from umd_eqx.runs.pretrained import Pretrained, Weights, from_pretrained
from umd_eqx.sampling import (
    DDIM,
    AbstractDenoiser,
    AbstractSampler,
    Autoguidance,
    ClassifierFree,
    DPMSolverPP,
    Interval,
    effective_sampler,
)

Types = Mapping[str, type]
"""User-defined classes, by the names that flags use."""


@dataclasses.dataclass(frozen=True)
class SamplingFlags:
    """The network, its sampler and its guidance."""

    run: str | None = None
    """Run directory or exported safetensors file. None: the small weights included in the package."""
    weights: Weights = "ema"
    """Weights of the run: raw, or ema for their moving average (raw if the run keeps none)."""
    tokenizer: str | None = None
    """Location of the tokenizer, for a network trained on latents. None: its location at training time."""
    sampler: Annotated[AbstractSampler, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=functools.partial(DPMSolverPP, steps=32, head="v")
    )
    cfg_scale: float | None = None
    """Scale of classifier-free guidance; 1 is no guidance. None: 2 with labels or --weak, otherwise 1; 1 with
    --sampler meanflow."""
    cfg_interval: tuple[float, float] | None = None
    """Apply guidance only between these two times of the path, from 0 (clean) to 1 (noise)."""
    weak: str | None = None
    """Run or export of a weaker network, for autoguidance; --cfg-scale is then the scale of autoguidance."""
    seed: int = 0
    """Random seed of the noise."""
    batch_size: int = 64
    """Number of images sampled at once."""

    def validate(self) -> None:
        """Raises `BadInput` naming the invalid field, before any file is read."""
        require_bounded_integers(self.sampler)
        require_bounded_integers({"batch_size": self.batch_size, "steps": getattr(self.sampler, "steps", 1)})
        self.sampler.validate()
        require_bounded_floats(self.sampler)
        if self.batch_size < 1:
            raise BadInput("batch_size", f"{self.batch_size} is not a valid batch size", "Use 1 or more")
        if not 0 <= self.seed < 2**32:
            raise BadInput("seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
        guided = self.cfg_scale not in (None, 1) or self.weak is not None
        if guided and not self.sampler.supports_guidance:
            problem = f"{type(self.sampler).__name__} does not support guidance"
            raise BadInput("sampler", problem, "Use `cfg_scale=1`, without `weak`, or another sampler")

    def source(self, types: Types) -> Pretrained:
        """Loads the trained network; `types` are user-defined classes by name. Raises `BadInput` naming `run`."""
        return from_pretrained(self.run, weights=self.weights, tokenizer=self.tokenizer, types=types.values())

    def guidance(self, source: Pretrained, weak: Pretrained | None) -> dict[str, object]:
        """The guidance settings for a result file; `weak` is the network returned by `weaker`."""
        kind = "none" if self.scale(source) == 1 else "classifier-free" if self.weak is None else "autoguidance"
        by = {} if weak is None else {"weak": weak.digest}
        return {"kind": kind, "cfg_scale": self.scale(source), "interval": self.cfg_interval, **by}

    def scale(self, source: Pretrained) -> float:
        """The guidance scale, or its default if not given. Raises `BadInput` naming `cfg_scale`."""
        labels = source.model.num_classes is not None
        guided = (labels or self.weak is not None) and self.sampler.supports_guidance
        scale = self.cfg_scale if self.cfg_scale is not None else 2.0 if guided else 1.0
        if not 0 <= scale < float("inf"):
            raise BadInput("cfg_scale", f"{scale} is not a valid scale", "Use 0 or more; 1 disables guidance")
        if not labels and scale != 1 and self.weak is None:
            raise BadInput("cfg_scale", "the network is not class-conditional", "Fine-tune it, or use 1")
        if scale == 1 and (self.weak is not None or self.cfg_interval is not None):
            hint = "Use another scale, or omit `weak` and `cfg_interval`"
            raise BadInput("cfg_scale", "1 disables guidance", hint)
        return scale

    def guided(self, source: Pretrained, weak: Pretrained | None) -> tuple[AbstractDenoiser, AbstractSampler]:
        """The guided network as a denoiser, and the sampler. Raises `BadInput` naming the invalid flag.

        `weak` is the network returned by `weaker`.
        """
        sampler, path = (
            effective_sampler(self.sampler, latents=source.tokenizer is not None),
            path_for(self.sampler, source.path),
        )
        scale, denoiser = self.scale(source), sampler.denoiser(source.model, path)
        if scale == 1:
            return denoiser, sampler
        if weak is None:
            guided = ClassifierFree(denoiser, scale)
        else:
            guided = Autoguidance(denoiser, sampler.denoiser(weak.model, path), scale)
        if self.cfg_interval is None:
            return guided, sampler
        return Interval(guided, denoiser, *self.cfg_interval), sampler

    def weaker(self, source: Pretrained, types: Types) -> Pretrained | None:
        """Loads the weaker network for autoguidance; None without `--weak`. Raises `BadInput` naming the flag."""
        self.scale(source)  # raises before anything is loaded
        if self.weak is None:
            return None
        options = {"tokenizer": self.tokenizer, "known": source.latents, "types": types.values()}
        weak = from_pretrained(self.weak, field="weak", **options)
        if weak.path != source.path:
            problem = f"it was trained on {type(weak.path).__name__} and not on {type(source.path).__name__}"
            raise BadInput("weak", problem, "Use a network trained on the same path")
        made_by = [None if it.latents is None else it.latents.spec.digest for it in (weak, source)]
        if not same_tokenizer(*made_by):
            raise BadInput("weak", "it was trained on other latents", "Use a network with the same tokenizer")
        return weak

    def warnings(self, source: Pretrained) -> list[str]:
        """Warnings to print before sampling from the network, one line each."""
        if source.denoises is not False:
            return []
        return [f"{source.preset} was not trained on noised images, so its samples look like noise"]

    def describe(self, source: Pretrained, types: Types) -> str:
        """A one-line description of the network, the sampler and the guidance."""
        rtol, steps = (getattr(self.sampler, name, None) for name in ("rtol", "steps"))
        how = [f"rtol {rtol:g}"] if rtol is not None else [f"{steps} steps"] if steps is not None else []
        if eta := getattr(self.sampler, "eta", 0.0):
            how.append(f"eta {eta:g}")
        parts = [self.sampler_name(types), *how, f"guidance {self.scale(source):g}"]
        return f"{source.describe()}; {', '.join(parts)}"

    def sampler_name(self, types: Types) -> str:
        """The name of the sampler, as `--sampler` accepts it."""
        return name_of(self.sampler, sampling_kinds(types)[AbstractSampler])


def sampling_kinds(types: Types, *, eta: float = 0.0) -> Kinds:
    """The types that these commands select by name, with the user-defined `types`. `eta` is the default of DDIM."""
    samplers = {**KINDS[AbstractSampler], "ddim": functools.partial(DDIM, eta=eta)}
    return with_types({**KINDS, AbstractSampler: samplers}, types)


Flags = Annotated[SamplingFlags, tyro.conf.arg(name="")]
