"""What `sample.py` and `evaluate.py` have in common: the flags of a sampler, and the model that they make of a run."""

import dataclasses
from typing import Annotated, Literal

import tyro

from umd_eqx.errors import BadInput
from umd_eqx.eval.generation import path_for
from umd_eqx.pretrained import Pretrained, Weights, from_pretrained
from umd_eqx.sampling import (
    AbstractDenoiser,
    AbstractSampler,
    Autoguidance,
    ClassifierFree,
    Interval,
    SamplerConfig,
)
from umd_eqx.types import same_tokenizer


@dataclasses.dataclass(frozen=True)
class SamplingFlags:
    """The network, and the way from noise to images."""

    run: str | None = None
    """A run directory or an exported safetensors file. None: the small weights that come with the package."""
    weights: Weights = "ema"
    """Which weights of a run: raw, or their average where one is kept."""
    tokenizer: str | None = None
    """Where the tokenizer of a network of latents lies. None: where it lay when the network was trained."""
    sampler: Literal["ddim", "euler", "heun", "dpmpp", "tsit5", "dopri5", "sde"] = "dpmpp"
    """How the noise is taken away. tsit5 and dopri5 choose their steps themselves."""
    steps: int = 32
    """Steps of the sampler; heun calls the network twice in each."""
    eta: float = 0.0
    """Of ddim: 0 is deterministic, 1 adds as much noise as ancestral sampling (the reference's)."""
    grid: Literal["reference", "uniform", "edm", "logsnr", "shifted"] | None = None
    """Where the steps lie: as the reference's, evenly in time, as EDM's rho, evenly in the log-SNR, or shifted to
    noise. None: the sampler's own."""
    head: Literal["eps", "x0", "v"] = "v"
    """Which output of the network is believed: the noise (as published), the clean image, or v, which goes by the one
    where there is little noise and by the other where there is much."""
    clip: bool = True
    """Keep each prediction of the clean image in [-1, 1] where pixels are sampled, as published. Latents are never
    clipped."""
    rtol: float = 1e-3
    """Relative tolerance of tsit5 and dopri5."""
    atol: float = 1e-3
    """Absolute tolerance of tsit5 and dopri5."""
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

    def sampler_config(self) -> SamplerConfig:
        """The sampler that the flags ask for. Raises `BadInput` naming the flag."""
        names = ("steps", "eta", "grid", "head", "clip", "rtol", "atol")
        config = SamplerConfig(name=self.sampler, **{name: getattr(self, name) for name in names})
        config.validate("")
        if self.batch_size < 1:
            raise BadInput("--batch-size", f"{self.batch_size} images make no batch", "Use 1 or more")
        if not 0 <= self.seed < 2**32:
            raise BadInput("--seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
        return config

    def source(self) -> Pretrained:
        """The trained network. Raises `BadInput` naming `--run`."""
        return from_pretrained(self.run, weights=self.weights, tokenizer=self.tokenizer)

    def guidance(self, source: Pretrained) -> dict[str, object]:
        """What the guidance is, for a result file."""
        kind = "none" if self.scale(source) == 1 else "classifier-free" if self.weak is None else "autoguidance"
        weak = {} if self.weak is None else {"weak": self._weaker(source).digest}
        return {"kind": kind, "cfg_scale": self.scale(source), "interval": self.cfg_interval, **weak}

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
            way_out = "Use another scale, or leave --weak and --cfg-interval out"
            raise BadInput("--cfg-scale", "1 is no guidance", way_out)
        return scale

    def guided(self, source: Pretrained) -> tuple[AbstractDenoiser, AbstractSampler]:
        """The network with its guidance as a denoiser, and the sampler. Raises `BadInput` naming the flag at fault."""
        config = self.sampler_config()
        sampler, path = config.build(latents=source.tokenizer is not None), path_for(config, source.path)
        scale, denoiser = self.scale(source), sampler.denoiser(source.model, path)
        if scale == 1:
            return denoiser, sampler
        if self.weak is None:
            guided = ClassifierFree(denoiser, scale)
        else:
            guided = Autoguidance(denoiser, sampler.denoiser(self._weaker(source).model, path), scale)
        if self.cfg_interval is None:
            return guided, sampler
        return Interval(guided, denoiser, *self.cfg_interval), sampler

    def _weaker(self, source: Pretrained) -> Pretrained:
        weak = from_pretrained(self.weak, tokenizer=self.tokenizer, field="--weak")
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

    def describe(self, source: Pretrained) -> str:
        """One line for a person."""
        adaptive = self.sampler in ("tsit5", "dopri5")
        how = f"rtol {self.rtol:g}" if adaptive else f"{self.steps} steps"
        return f"{source.describe()}; {self.sampler}, {how}, guidance {self.scale(source):g}"


Flags = Annotated[SamplingFlags, tyro.conf.arg(name="")]
