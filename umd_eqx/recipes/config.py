"""The configuration of a run, a tree of frozen dataclasses, and its validation."""

import dataclasses
from typing import Annotated, Literal

import tyro
from jax.sharding import Mesh

from umd_eqx.core.bounds import require_bounded_floats, require_bounded_integers
from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.remote import require_url
from umd_eqx.core.sharding import ShardingConfig, batch_parts, validate_batch
from umd_eqx.core.types import DataSpec, LatentSpec
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.data.source_configs import TFDS, AbstractSource
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.eval import AbstractEvaluator
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.objectives import AbstractObjective
from umd_eqx.training.optim import AbstractOptimiser, EmaConfig
from umd_eqx.training.profile import ProfileConfig
from umd_eqx.training.trainable import EVERYTHING, AbstractTrainable


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images that a run is trained and evaluated on."""

    source: Annotated[AbstractSource, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TFDS)
    """The source of the images; its fields have flags of their own, such as --data.dir."""
    train_split: str = "train"
    """The split to train on, such as train[:99%]."""
    test_split: str = "test"
    """The split to evaluate on."""
    size: int = 28
    """Side of the square images after cropping, in pixels."""
    area_min: float | int = 80.0
    """Smallest area of a random crop, in percent of the image. 100 takes the centre crop of the evaluations."""
    flip: bool = True
    """Whether to mirror each training image with probability 1/2."""
    batch_size: int = 32
    """Images per training step, over all devices."""
    eval_batch_size: int = 256
    """Images per evaluation batch, over all devices."""
    decode: Literal["exact", "fast"] = "exact"
    """How training images are decoded: exact, as published; or fast, JPEGs at 1/2, 1/4 or 1/8 of their size where the
    crop still has enough pixels. The crops are the same; their pixels are smoother."""
    workers: int = 2
    """Number of threads or processes that prefetch images; each prepares a batch of its own."""
    worker_kind: Literal["threads", "processes"] = "threads"
    """What prepares training batches. The batches are the same; processes take seconds to start, and memory, and are
    faster where many threads wait for Python."""
    max_broken: int | None = None
    """Number of images of each split that may be unreadable or without a class before the run stops. They are skipped
    and counted. None: 1 % of the split, and at least 10."""
    latents: str | None = None
    """Folder written by encode_latents.py whose latents are trained on. None: images are encoded during training if
    there is a tokenizer."""
    expected: Annotated[DataSpec | None, tyro.conf.Suppress] = None
    """The expected description of the data, used by --dry-run where the data are not on this machine."""
    content: Annotated[str | None, tyro.conf.Suppress] = None
    """Fingerprint of the data (`AbstractSource.digest`), filled in by a run: it is resumed only on the same data."""

    def validate(self, mesh: Mesh) -> None:
        """Raises `BadInput` for invalid values."""
        require_bounded_integers(self, "data")
        for name in ("size", "batch_size", "eval_batch_size", "workers"):
            if getattr(self, name) < 1:
                raise BadInput(f"data.{name}", f"{getattr(self, name)} is too small", "Use 1 or more")
        if not 0 < self.area_min <= 100:
            raise BadInput(
                "data.area_min", f"{self.area_min} is outside (0, 100]", "Use a percentage; the paper uses 80"
            )
        if self.max_broken is not None and self.max_broken < 0:
            raise BadInput("data.max_broken", f"{self.max_broken} is negative", "Use 0 or more")
        parts = batch_parts(mesh)
        if self.eval_batch_size % parts:
            nearest = max(1, round(self.eval_batch_size / parts)) * parts
            problem = f"{self.eval_batch_size} does not divide over {parts} devices"
            raise BadInput("data.eval_batch_size", problem, f"Use {nearest}, for example")

    def describe(self) -> DataSpec:
        """Returns the size of each split and the image size, channels and classes, without reading an image.

        Raises `BadInput` naming a field of the source (`data.source.dir`), `data.train_split` or `data.test_split`.
        """
        return self.source.describe(self.train_split, self.test_split)

    def open(self) -> tuple[SkipBroken, CountBroken]:
        """Returns the training images, broken ones replaced, and the evaluation images, broken ones counted.

        Raises `BadInput` as `describe` does, and for files that cannot be read. Reading an image raises `BadInput`
        naming `data.max_broken` if too many images of its split were broken.
        """
        train = self.source.open(self.train_split)
        test = self.source.open(self.test_split, field="data.test_split")
        return (
            SkipBroken(train, self.max_broken, split=self.train_split),
            CountBroken(test, self.max_broken, split=self.test_split),
        )

    def moved(self, dir: str | None) -> "DataConfig":
        """Returns the same data in another folder. None: the default folder of the source, or an unknown folder."""
        return dataclasses.replace(self, source=self.source.moved(dir))

    def located(self, recipe: "DataConfig | None" = None) -> "DataConfig":
        """Returns the same data with the source that reads what is in its folder (`AbstractSource.located`).

        Where that is another source, `expected` does not describe it and is dropped. `recipe` is the preset that was
        configured: a data set that still has the preset's name is named as its folder.
        """
        names = () if recipe is None or not isinstance(recipe.source, TFDS) else (recipe.source.name,)
        source = self.source.located(names)
        return self if source == self.source else dataclasses.replace(self, source=source, expected=None)

    def transform(self) -> TrainTransform:
        """Returns the training transform, from uint8 of any size to float32 (size, size, channels) in [-1, 1].

        Never raises: the values are checked by `validate`.
        """
        return TrainTransform(self.size, self.area_min, self.flip, self.decode)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often the training state is saved, and how many checkpoints are kept."""

    every: int = 5000
    """Steps between two checkpoints. One is also saved at the end and when a signal stops the run."""
    keep: int = 2
    """Number of most recent checkpoints to keep."""
    mirror: str | None = None
    """URL of a folder of this run alone (gs://, s3://, abfs://, file:///), to which complete checkpoints are copied in
    the background, and from which a run without it, or with an older one, is resumed. None: no copies."""

    def validate(self) -> None:
        """Raises `BadInput` for invalid values."""
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise BadInput(f"checkpoint.{name}", f"{getattr(self, name)} is too small", "Use 1 or more")
        if self.mirror is not None:
            require_url("checkpoint.mirror", self.mirror)


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often metrics are logged, and where to."""

    every: int = 100
    """Steps between two rows of metrics.jsonl."""
    wandb: bool = False
    """Whether to also log metrics and images to Weights & Biases (key and mode from WANDB_API_KEY and WANDB_MODE)."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The pretrained weights that a run is initialised from; see `umd_eqx.runs.pretrained`."""

    source: str
    """A run directory or an exported safetensors file."""
    weights: Literal["raw", "ema"]
    """Which weights of a run: raw, or their moving average if the run has one."""
    digest: str
    """Fingerprint of the weights: a run is resumed only with the weights that it was started from."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run: everything that its result depends on, and settings that may change on resuming."""

    model: AbstractModelConfig
    objective: AbstractObjective
    path: AbstractPath
    data: DataConfig
    optim: AbstractOptimiser
    tokenizer: str | None = None
    """The tokenizer whose latents the network is trained on: a run of train_tokenizer.py, an export, a folder or cached
    repository of a Stable Diffusion VAE, or fashion-kl or fashion-fsq, which come with the package. None: the network
    is trained on pixels."""
    latent: Annotated[LatentSpec | None, tyro.conf.Suppress] = None
    """The shape of the tokenizer's latents, filled in by `umd_eqx.runs.resolved.resolve`."""
    trainable: AbstractTrainable = EVERYTHING
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    eval: dict[str, AbstractEvaluator] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    sharding: ShardingConfig = dataclasses.field(default_factory=ShardingConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    seed: int = 0
    """Seed of everything random: weights, order of the data, augmentation, masks and noise."""
    max_skipped: int = 10
    """Number of consecutive steps with a non-finite loss or gradient after which the run stops."""
    start: Annotated[Start | None, tyro.conf.Suppress] = None
    """The pretrained weights to start from. None: the weights are initialised from the seed."""

    @property
    def side(self) -> int:
        """Side of the network's input: of the image, or of its latent."""
        return self.data.size if self.latent is None else self.data.size // self.latent.factor

    def image_shape(self, spec: DataSpec) -> tuple[int, int, int]:
        """Returns the shape of the network's input for data described by `spec`."""
        return self.side, self.side, spec.channels if self.latent is None else self.latent.channels

    def validate(self, mesh: Mesh) -> None:
        """Raises `BadInput` for the first invalid value, naming its field, with a hint."""
        require_bounded_integers(self)
        self._validate_latents()
        self.model.validate(self.side)
        self.data.validate(mesh)
        self.path.validate()
        num_patches = self.model.num_patches(self.side)
        self.objective.validate(num_patches, self.data.batch_size)
        self.optim.validate()
        period = self.objective.period(self.data.batch_size)
        validate_batch(self.data.batch_size, mesh, self.optim.accumulate, period)
        self.ema.rate_for(self.data.batch_size, labels=self.model.class_conditional)
        for field, value in (
            ("log.every", self.log.every),
            ("max_skipped", self.max_skipped),
            *((f"eval.{name}.every", evaluator.every) for name, evaluator in self.eval.items()),
        ):
            if value < 1:
                raise BadInput(field, f"{value} is too small", "Use 1 or more")
        self.checkpoint.validate()
        for name, evaluator in self.eval.items():
            evaluator.validate(num_patches, f"eval.{name}")
            if evaluator.needs_noise and not self.objective.denoises:
                problem = "the evaluator samples from noise, but the objective trains on clean images only"
                raise BadInput(f"eval.{name}", problem, "Leave it out, or use an objective with noised images")
        if not 0 <= self.seed < 2**32:
            raise BadInput("seed", f"{self.seed} is outside 0 .. 2^32 - 1", "Choose a number in that range")
        require_bounded_floats(self)

    def _validate_latents(self) -> None:
        if self.tokenizer is None and self.data.latents is not None:
            hint = "Also give `tokenizer`, the tokenizer that encoded them"
            raise BadInput("data.latents", "a system that is trained on pixels cannot use latents", hint)
        if self.data.latents is not None and self.data.decode != "exact":
            problem = f"{self.data.decode!r} has no effect on latents, which were encoded already"
            raise BadInput("data.decode", problem, "Leave it out")
        if self.tokenizer is not None and self.latent is None:
            raise BadInput(
                "tokenizer", f"{self.tokenizer} has not been resolved", "Call umd_eqx.runs.resolved.resolve first"
            )
        factor = 1 if self.latent is None else self.latent.factor
        if self.data.size % factor:
            problem = f"{self.data.size} is not a multiple of the tokenizer's downsampling factor, {factor}"
            raise BadInput("data.size", problem, f"Use a multiple of {factor}")
