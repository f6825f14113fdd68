"""The interface of the configuration of a trainable network."""

import abc
import dataclasses
from pathlib import Path

import equinox as eqx
from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.models.base import AbstractModel
from umd_eqx.models.finished import FinishedRun
from umd_eqx.models.vit.warm_start import warm_start


@dataclasses.dataclass(frozen=True)
class AbstractModelConfig(abc.ABC):
    """Base class for the configuration of a trainable network, such as an auto-encoder, a tokenizer or a classifier."""

    @property
    def title(self) -> str:
        """A short display name, one or two words. Defaults to the name of the type."""
        return type(self).__name__

    @property
    @abc.abstractmethod
    def class_conditional(self) -> bool:
        """Whether the network is conditioned on labels."""

    @property
    def precision(self) -> str:
        """The dtype of the computation, as recorded in result files. Defaults to float32."""
        return "float32"

    def num_patches(self, size: int) -> int:
        """Returns the number of maskable patches in an image of `size` x `size`; by default 1, for no masks."""
        del size
        return 1

    def validate(self, size: int, field: str = "model.variant") -> None:
        """Raises `BadInput` if the network cannot be built or does not accept images of `size` x `size`.

        By default it never raises. `field` is the field to name if the image size is at fault.
        """
        del size, field

    @abc.abstractmethod
    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> eqx.Module:
        """Returns a freshly initialised network for images of `size` x `size` x `channels`."""

    def start(self, fresh: eqx.Module, source: AbstractModel) -> eqx.Module:
        """Returns the network `fresh` with the weights of a pre-trained one, `source` (`Config.start`).

        By default all weights are taken, except those of the label embedding (`warm_start`). Raises `BadInput` naming
        `from` if the weights do not fit.
        """
        if not isinstance(fresh, AbstractModel):
            problem = f"{self.title} cannot be initialised from the weights of another network"
            raise BadInput("from", problem, "Leave it out")
        return warm_start(fresh, source)

    def finish(self, run: FinishedRun) -> Path | None:
        """Writes the artefacts of a finished run other than its checkpoints. By default there are none.

        Called whenever a run is at its last step, including when it had already finished before. Returns the path of
        the file that this call wrote, or None if it wrote nothing.
        """
        del run
        return None
