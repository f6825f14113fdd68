"""The configurations of trainable classifiers."""

import dataclasses
from pathlib import Path

from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.extractors.classifier import SIDE, FashionClassifier
from umd_eqx.models.extractors.fashion import finish_classifier
from umd_eqx.models.finished import FinishedRun


@dataclasses.dataclass(frozen=True)
class FashionClassifierConfig(AbstractModelConfig):
    """A small classifier of 28 x 28 greyscale images. It has no hyper-parameters."""

    @property
    def title(self) -> str:
        """The name of the network."""
        return "FashionClassifier"

    @property
    def class_conditional(self) -> bool:
        """Always False: the label is the prediction target, not an input."""
        return False

    def validate(self, size: int, field: str = "data.size") -> None:
        """Raises `BadInput` for images of another size than 28 x 28."""
        if size != SIDE:
            problem = f"the classifier is trained on images of {SIDE} x {SIDE}, not {size} x {size}"
            raise BadInput(field, problem, f"Use {SIDE}")

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> FashionClassifier:
        """Returns a freshly initialised network. Raises `BadInput` for colour images, and as `validate` does."""
        self.validate(size)
        if channels != 1:
            problem = f"the images have {channels} channels, but the classifier supports only 1"
            raise BadInput("data.source.name", problem, "Choose a data set of greyscale images")
        return FashionClassifier.init(num_classes, key=key)

    def finish(self, run: FinishedRun) -> Path | None:
        """Writes the classifier to the run directory; see `finish_classifier`."""
        return finish_classifier(run)
