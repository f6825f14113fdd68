"""The parts of training, built from a configuration and a description of the data."""

import dataclasses

import equinox as eqx
import jax
from jax.sharding import Mesh

from umd_eqx.core.bounds import MOST
from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import DataSpec
from umd_eqx.eval.features import require_measurable
from umd_eqx.models import AbstractModel
from umd_eqx.recipes.config import Config
from umd_eqx.training.flops import step_flops
from umd_eqx.training.optim import horizon, schedule
from umd_eqx.training.step import Parts, TrainState
from umd_eqx.training.trainable import EVERYTHING


@dataclasses.dataclass(frozen=True)
class Built:
    """The parts of training built from a configuration; `init` returns the initial state."""

    config: Config
    spec: DataSpec
    parts: Parts
    warmup: int
    total: int

    def steps(self, limit: int | None) -> int:
        """Returns the step at which the run ends: the last of its schedule, or `limit` if that is sooner.

        Raises `BadInput` for a `limit` below 1.
        """
        if limit is not None and limit < 1:
            raise BadInput("limit_steps", f"{limit} is too small", "Use 1 or more, or leave it out")
        return self.total if limit is None else min(self.total, limit)

    def init(self, source: AbstractModel | None = None) -> TrainState:
        """Returns the state before the first step, a function of the seed and of `source`, as `parts.layout` has it.

        Raises `BadInput` naming `from` if the weights of `source` do not fit the network.
        """
        # Compiled as one program, which starts sooner than hundreds of small ones.
        return eqx.filter_jit(self._init)(source)

    def _init(self, source: AbstractModel | None = None) -> TrainState:
        model = self._model()
        if source is not None:
            model = self.config.model.start(model, source)
        parts = self.parts
        ema = parts.ema_rate is not None
        state = TrainState.init(model, parts.optimiser, ema=ema, trainable=parts.trainable)
        return parts.layout.place(state)  # inside `jit`: the whole state never lies on one device

    def init_model(self) -> eqx.Module:
        """Returns the model of `init`, initialised from the seed, without optimiser state or moving average."""
        return eqx.filter_jit(self._model)()

    def _model(self) -> eqx.Module:
        key = jax.random.key(self.config.seed)
        size, _, channels = self.config.image_shape(self.spec)
        return self.config.model.build(size, channels, self.spec.num_classes, key=key)

    def step_flops(self) -> int:
        """Returns the model FLOPs of one step (`umd_eqx.training.flops`), without the encoding of images to latents."""
        config, model = self.config, self.abstract_state().model
        part = None if config.trainable == EVERYTHING else config.trainable
        image, batch_size = config.image_shape(self.spec), config.data.batch_size
        return step_flops(config.objective, model, config.path, image, batch_size, part)

    def abstract_state(self) -> TrainState:
        """Returns the shapes and dtypes of the state without computing it.

        Raises `BadInput` if the network cannot be built for these data, or lacks what training or an evaluator needs.
        """
        state = eqx.filter_eval_shape(self._init)
        self.parts.layout.require_divisible(state.model)
        self.config.objective.require_suitable(state.model, self.config.path)
        require_measurable(state.model, self.config.eval)
        return state


def build(config: Config, spec: DataSpec, mesh: Mesh | None = None) -> Built:
    """Validates a configuration and builds the parts of its training step, for data described by `spec`.

    Raises `BadInput` naming the field of an invalid value.
    """
    mesh = make_mesh(sharding=config.sharding) if mesh is None else mesh
    config.validate(mesh)
    batch_size = config.data.batch_size
    warmup, total = horizon(config.optim, spec.num_train, batch_size)
    if total < 1:
        problem = f"{config.optim.epochs} epochs of {spec.num_train} images are less than one step"
        raise BadInput("optim.epochs", problem, "Use more epochs")
    if total > MOST["steps"]:
        problem = f"{total:,} steps are too many"
        raise BadInput("optim.epochs", problem, f"Use fewer epochs, for at most {MOST['steps']:,} steps")
    lr = schedule(config.optim, spec.num_train, batch_size)
    parts = Parts(
        objective=config.objective,
        path=config.path,
        optimiser=config.optim.transformation(lr),
        schedule=lr,
        mesh=mesh,
        seed=config.seed,
        ema_rate=config.ema.rate_for(batch_size, labels=config.model.class_conditional),
        accumulate=config.optim.accumulate,
        trainable=config.trainable,
    )
    return Built(config, spec, parts, warmup, total)
