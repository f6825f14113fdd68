"""The frozen tree of dataclasses that a run is made from, what is wrong with it, and what is built of it."""

import dataclasses
from typing import Annotated, Literal

import equinox as eqx
import jax
import tyro
from jax.sharding import Mesh

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.sharding import make_mesh, validate_batch
from umd_eqx.core.types import DataSpec, LatentSpec
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.data.source_configs import TFDS, AbstractSource
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.eval import AbstractEvaluator
from umd_eqx.eval.features import require_measurable
from umd_eqx.models import AbstractModel
from umd_eqx.models.vit.variants import AbstractModelConfig
from umd_eqx.models.vit.warm_start import warm_start
from umd_eqx.objectives import AbstractObjective
from umd_eqx.training.flops import step_flops
from umd_eqx.training.optim import AbstractOptimiser, EmaConfig, horizon, schedule
from umd_eqx.training.step import Parts, TrainState
from umd_eqx.training.trainable import EVERYTHING, AbstractTrainable


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images."""

    source: Annotated[AbstractSource, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TFDS)
    """Where they come from; its fields are flags of their own, such as --data.dir."""
    train_split: str = "train"
    """Which part to train on, such as train[:99%]."""
    test_split: str = "test"
    """Which part to evaluate on."""
    size: int = 28
    """Side of the square that the network sees, in pixels, after cropping."""
    area_min: float | int = 80.0
    """Smallest area of a random crop, in percent. 100: the centre crop of the evaluations."""
    flip: bool = True
    """Mirror one image in two."""
    batch_size: int = 32
    """Images a step, over all devices."""
    eval_batch_size: int = 256
    """Images a batch of an evaluation, over all devices."""
    workers: int = 2
    """Threads that read images ahead, each a batch of its own."""
    max_broken: int = 100
    """How many images of each split may be unreadable or of no class (skipped and counted) before the run stops."""
    latents: str | None = None
    """A folder that encode_latents.py made: train on its latents. None: images are encoded on the way, if at all."""
    expected: Annotated[DataSpec | None, tyro.conf.Suppress] = None
    """What the data will be: enough for --dry-run where they are not on this machine."""

    def validate(self, mesh: Mesh) -> None:
        """Raises `BadInput` for values that cannot work."""
        for name in ("size", "batch_size", "eval_batch_size", "workers"):
            if getattr(self, name) < 1:
                raise BadInput(
                    f"--data.{name.replace('_', '-')}", f"{getattr(self, name)} is too small", "Use 1 or more"
                )
        if not 0 < self.area_min <= 100:
            raise BadInput("--data.area-min", f"{self.area_min} is outside (0, 100]", "Give percent; the paper has 80")
        if self.max_broken < 0:
            raise BadInput("--data.max-broken", f"{self.max_broken} is negative", "Use 0 or more")
        if self.eval_batch_size % mesh.size:
            nearest = max(1, round(self.eval_batch_size / mesh.size)) * mesh.size
            problem = f"{self.eval_batch_size} does not divide over {mesh.size} devices"
            raise BadInput("--data.eval-batch-size", problem, f"Use {nearest}, for example")

    def describe(self) -> DataSpec:
        """What the data are, without reading an image: images in each split, pixels, channels, classes.

        Raises `BadInput` naming a flag of the source (`--data.dir`), `--data.train-split` or `--data.test-split`.
        """
        return self.source.describe(self.train_split, self.test_split)

    def open(self) -> tuple[SkipBroken, CountBroken]:
        """The images to train on, broken ones replaced, and those to evaluate on, broken ones counted.

        Raises `BadInput` as `describe` does, and for files that cannot be read. Reading an image raises `BadInput`
        naming `--data.max-broken` where too many of its split were broken.
        """
        train = self.source.open(self.train_split)
        test = self.source.open(self.test_split, field="--data.test-split")
        return (
            SkipBroken(train, self.max_broken, split=self.train_split),
            CountBroken(test, self.max_broken, split=self.test_split),
        )

    def moved(self, dir: str | None) -> "DataConfig":
        """The same data where they lie in another folder; None: in the usual one, or in an unknown one."""
        return dataclasses.replace(self, source=self.source.moved(dir))

    def transform(self) -> TrainTransform:
        """What happens to an image before training: from uint8 of any size to float32 (size, size, channels), -1 .. 1.

        Raises nothing: the values are checked by `validate`.
        """
        return TrainTransform(self.size, self.area_min, self.flip)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved."""

    every: int = 5000
    """Steps between two checkpoints; there is also one at the end, and one when a signal stops the run."""
    keep: int = 2
    """How many of the newest are kept."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written down."""

    every: int = 100
    """Steps between two lines of metrics.jsonl."""
    wandb: bool = False
    """Send metrics and pictures to Weights & Biases, too (key and mode from WANDB_API_KEY and WANDB_MODE)."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the first weights of a run come from, if not from its seed: see `umd_eqx.runs.pretrained`."""

    source: str
    """A run directory or an exported safetensors file."""
    weights: Literal["raw", "ema"]
    """Which weights of a run: raw, or their average where one is kept."""
    digest: str
    """The fingerprint of the weights, so that a run goes on only from those that it began with."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: everything that its result depends on, and what may change while it goes on."""

    model: AbstractModelConfig
    objective: AbstractObjective
    path: AbstractPath
    data: DataConfig
    optim: AbstractOptimiser
    tokenizer: str | None = None
    """What makes the latents that the network is trained on: a run of train_tokenizer.py, an export, a folder or cached
    repository of a Stable Diffusion VAE, or fashion-kl or fashion-fsq, which come with the package. None: pixels."""
    latent: Annotated[LatentSpec | None, tyro.conf.Suppress] = None
    """What it makes of them (`umd_eqx.runs.resolved.resolve` looks)."""
    trainable: AbstractTrainable = EVERYTHING
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    eval: dict[str, AbstractEvaluator] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    seed: int = 0
    """Of everything random: weights, order of the data, augmentation, masks, noise."""
    max_skipped: int = 10
    """How many steps in a row may have a loss or gradient that is not finite before the run stops."""
    start: Annotated[Start | None, tyro.conf.Suppress] = None
    """The weights to begin with; None: fresh ones, from the seed."""

    @property
    def side(self) -> int:
        """Rows and columns of what the network sees: of the image, or of its latent."""
        return self.data.size if self.latent is None else self.data.size // self.latent.factor

    def image_shape(self, spec: DataSpec) -> tuple[int, int, int]:
        """What the network sees of data that are as `spec` says."""
        return self.side, self.side, spec.channels if self.latent is None else self.latent.channels

    def validate(self, mesh: Mesh) -> None:
        """Raises `BadInput` for the first value that cannot work, naming its flag, with a hint."""
        self._validate_latents()
        self.model.validate(self.side)
        self.data.validate(mesh)
        self.path.validate()
        num_patches = self.model.num_patches(self.side)
        self.objective.validate(num_patches, self.data.batch_size)
        self.optim.validate()
        period = self.objective.period(self.data.batch_size)
        validate_batch(self.data.batch_size, mesh, self.optim.accumulate, period)
        self.ema.rate_for(self.data.batch_size, labels=self.model.knows_labels)
        for flag, value in (
            ("--log.every", self.log.every),
            ("--checkpoint.every", self.checkpoint.every),
            ("--checkpoint.keep", self.checkpoint.keep),
            ("--max-skipped", self.max_skipped),
            *((f"--eval.{name}.every", evaluator.every) for name, evaluator in self.eval.items()),
        ):
            if value < 1:
                raise BadInput(flag, f"{value} is too small", "Use 1 or more")
        for name, evaluator in self.eval.items():
            evaluator.validate(num_patches, f"--eval.{name}")
            if evaluator.needs_noise and not self.objective.denoises:
                problem = "it samples from noise, and the objective trains on clean images only"
                raise BadInput(f"--eval.{name}", problem, "Leave it out, or let the objective noise some images")
        if not 0 <= self.seed < 2**32:
            raise BadInput("--seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")

    def _validate_latents(self) -> None:
        if self.tokenizer is None and self.data.latents is not None:
            hint = "Name the tokenizer that made them, too"
            raise BadInput("--data.latents", "latents are nothing to a system in pixels", hint)
        if self.tokenizer is not None and self.latent is None:
            raise BadInput(
                "--tokenizer", f"{self.tokenizer} was not looked at", "Call umd_eqx.runs.resolved.resolve first"
            )
        factor = 1 if self.latent is None else self.latent.factor
        if self.data.size % factor:
            problem = f"{self.data.size} pixels are no whole number of latents of {factor} pixels"
            raise BadInput("--data.size", problem, f"Use a multiple of {factor}")


@dataclasses.dataclass(frozen=True)
class Built:
    """What a configuration builds: static parts, and a state when it is asked for."""

    config: Config
    spec: DataSpec
    parts: Parts
    warmup: int
    total: int

    def steps(self, limit: int | None) -> int:
        """Where the run ends: at the end of its schedule, or at `limit` if that is sooner. Raises `BadInput`."""
        if limit is not None and limit < 1:
            raise BadInput("--limit-steps", f"{limit} is too small", "Use 1 or more, or leave it out")
        return self.total if limit is None else min(self.total, limit)

    def init(self, source: AbstractModel | None = None) -> TrainState:
        """The state before the first step, a function of the seed and of the weights to begin with, on every device.

        Raises `BadInput` naming `--from` where `source` is another network.
        """
        # Compiled: one program starts sooner than the hundreds of small ones that it is made of.
        return eqx.filter_jit(self._init)(source)

    def _init(self, source: AbstractModel | None = None) -> TrainState:
        model = self._model()
        if source is not None:
            if not isinstance(model, AbstractModel):
                problem = f"{self.config.model.title} is not a network that weights of another one fit"
                raise BadInput("--from", problem, "Leave it out")
            model = warm_start(model, source)
        parts = self.parts
        return TrainState.init(model, parts.optimiser, ema=parts.ema_rate is not None, trainable=parts.trainable)

    def init_model(self) -> eqx.Module:
        """The model of `init` alone, from the seed: without an optimiser's state and without an average."""
        return eqx.filter_jit(self._model)()

    def _model(self) -> eqx.Module:
        key = jax.random.key(self.config.seed)
        size, _, channels = self.config.image_shape(self.spec)
        return self.config.model.build(size, channels, self.spec.num_classes, key=key)

    def step_flops(self) -> int:
        """Model FLOPs of one step, `umd_eqx.training.flops`; the encoding of images on the way is not the network's."""
        config, model = self.config, self.abstract_state().model
        part = None if config.trainable == EVERYTHING else config.trainable
        image, batch_size = config.image_shape(self.spec), config.data.batch_size
        return step_flops(config.objective, model, config.path, image, batch_size, part)

    def abstract_state(self) -> TrainState:
        """The state's shapes, without computing it.

        Raises `BadInput` where the network cannot be built for these data or lacks what training or an evaluator needs.
        """
        state = eqx.filter_eval_shape(self._init)
        require_measurable(state.model, self.config.eval)
        return state


def build(config: Config, spec: DataSpec, mesh: Mesh | None = None) -> Built:
    """Checks a configuration and builds the parts of its training step, for data that are as `spec` says.

    Raises `BadInput` naming the flag.
    """
    mesh = make_mesh() if mesh is None else mesh
    config.validate(mesh)
    batch_size = config.data.batch_size
    warmup, total = horizon(config.optim, spec.num_train, batch_size)
    if total < 1:
        raise BadInput("--optim.epochs", f"{config.optim.epochs} of {spec.num_train} images is no step", "Use more")
    lr = schedule(config.optim, spec.num_train, batch_size)
    parts = Parts(
        objective=config.objective,
        path=config.path,
        optimiser=config.optim.transformation(lr),
        schedule=lr,
        mesh=mesh,
        seed=config.seed,
        ema_rate=config.ema.rate_for(batch_size, labels=config.model.knows_labels),
        accumulate=config.optim.accumulate,
        trainable=config.trainable,
    )
    return Built(config, spec, parts, warmup, total)
