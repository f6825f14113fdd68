"""What `sample.py` and `evaluate.py` have in common: the flags of a sampler, and the model that they make of a run."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated

import tyro

from umd_eqx.commands.leaves import KINDS, Kinds, name_of, with_types
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
    in_force,
)

Types = Mapping[str, type]
"""A reader's own classes, by the names that flags give them."""


@dataclasses.dataclass(frozen=True)
class SamplingFlags:
    """The network, and the way from noise to images."""

    run: str | None = None
    """A run directory or an exported safetensors file. None: the small weights that come with the package."""
    weights: Weights = "ema"
    """Which weights of a run: raw, or their average where one is kept."""
    tokenizer: str | None = None
    """Where the tokenizer of a network of latents lies. None: where it lay when the network was trained."""
    sampler: Annotated[AbstractSampler, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=functools.partial(DPMSolverPP, steps=32, head="v")
    )
    cfg_scale: float | None = None
    """Classifier-free guidance: 1 is none. None: 2 for a network with labels."""
    cfg_interval: tuple[float, float] | None = None
    """Guide only between these two times of the path, 0 (clean) to 1 (noise)."""
    weak: str | None = None
    """Guide by a weaker network (autoguidance): its run or export. `--cfg-scale` is then the scale of this."""
    seed: int = 0
    """Of the noise."""
    batch_size: int = 64
    """Images sampled at once."""

    def validate(self) -> None:
        """Raises `BadInput` naming the flag, before anything is read."""
        self.sampler.validate()
        if self.batch_size < 1:
            raise BadInput("--batch-size", f"{self.batch_size} images make no batch", "Use 1 or more")
        if not 0 <= self.seed < 2**32:
            raise BadInput("--seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")

    def source(self, types: Types) -> Pretrained:
        """The trained network; `types` are the reader's own, by name. Raises `BadInput` naming `--run`."""
        return from_pretrained(self.run, weights=self.weights, tokenizer=self.tokenizer, types=types.values())

    def guidance(self, source: Pretrained, weak: Pretrained | None) -> dict[str, object]:
        """What the guidance is, for a result file; `weak` is what `weaker` gave."""
        kind = "none" if self.scale(source) == 1 else "classifier-free" if self.weak is None else "autoguidance"
        by = {} if weak is None else {"weak": weak.digest}
        return {"kind": kind, "cfg_scale": self.scale(source), "interval": self.cfg_interval, **by}

    def scale(self, source: Pretrained) -> float:
        """The guidance scale, chosen where it is not given. Raises `BadInput` naming `--cfg-scale`."""
        labels = source.model.num_classes is not None
        guided = labels or self.weak is not None
        scale = self.cfg_scale if self.cfg_scale is not None else 2.0 if guided else 1.0
        if not 0 <= scale < float("inf"):
            raise BadInput("--cfg-scale", f"{scale} is no scale", "Use 0 or more; 1 is no guidance")
        if not labels and scale != 1 and self.weak is None:
            raise BadInput("--cfg-scale", "the network knows no labels to be guided by", "Fine-tune it, or use 1")
        if scale == 1 and (self.weak is not None or self.cfg_interval is not None):
            hint = "Use another scale, or leave --weak and --cfg-interval out"
            raise BadInput("--cfg-scale", "1 is no guidance", hint)
        return scale

    def guided(self, source: Pretrained, weak: Pretrained | None) -> tuple[AbstractDenoiser, AbstractSampler]:
        """The network with its guidance as a denoiser, and the sampler. Raises `BadInput` naming the flag at fault.

        `weak` is what `weaker` gave.
        """
        sampler, path = (
            in_force(self.sampler, latents=source.tokenizer is not None),
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
        """The weaker network to guide by, loaded once; None where there is none. Raises `BadInput` naming the flag."""
        self.scale(source)  # what is wrong with it is told before anything is loaded
        if self.weak is None:
            return None
        options = {"tokenizer": self.tokenizer, "known": source.latents, "types": types.values()}
        weak = from_pretrained(self.weak, field="--weak", **options)
        if weak.path != source.path:
            problem = f"it was trained on {type(weak.path).__name__} and not on {type(source.path).__name__}"
            raise BadInput("--weak", problem, "Take a checkpoint of the same path")
        made_by = [None if it.latents is None else it.latents.spec.digest for it in (weak, source)]
        if not same_tokenizer(*made_by):
            raise BadInput("--weak", "it was trained on other latents", "Take a checkpoint of the same tokenizer")
        return weak

    def warnings(self, source: Pretrained) -> list[str]:
        """What a person should know before sampling from a network, each in one line."""
        if source.denoises is not False:
            return []
        return [f"{source.preset} was never trained on noised images: what is sampled from it looks like noise"]

    def describe(self, source: Pretrained, types: Types) -> str:
        """One line for a person."""
        rtol, steps = (getattr(self.sampler, name, None) for name in ("rtol", "steps"))
        how = [f"rtol {rtol:g}"] if rtol is not None else [f"{steps} steps"] if steps is not None else []
        parts = [self.sampler_name(types), *how, f"guidance {self.scale(source):g}"]
        return f"{source.describe()}; {', '.join(parts)}"

    def sampler_name(self, types: Types) -> str:
        """What `--sampler` calls the sampler."""
        return name_of(self.sampler, sampling_kinds(types)[AbstractSampler])


def sampling_kinds(types: Types) -> Kinds:
    """What can be chosen by name in these commands; `types` are the reader's own. DDIM is deterministic here."""
    samplers = {**KINDS[AbstractSampler], "ddim": functools.partial(DDIM, eta=0.0)}
    return with_types({**KINDS, AbstractSampler: samplers}, types)


Flags = Annotated[SamplingFlags, tyro.conf.arg(name="")]
