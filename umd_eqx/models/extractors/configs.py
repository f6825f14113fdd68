"""How the classifiers that can be trained are built: what a recipe says of them."""

import dataclasses

from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.models.extractors.classifier import SIDE, FashionClassifier
from umd_eqx.models.vit.variants import AbstractModelConfig


@dataclasses.dataclass(frozen=True)
class FashionClassifierConfig(AbstractModelConfig):
    """The small classifier of 28 x 28 grey images. It has no hyper-parameters."""

    @property
    def title(self) -> str:
        """The name of the network."""
        return "FashionClassifier"

    @property
    def knows_labels(self) -> bool:
        """False: the label is what it predicts, and not what it is told."""
        return False

    def num_patches(self, size: int) -> int:
        """1: nothing is masked."""
        return 1

    def validate(self, size: int, field: str = "--data.size") -> None:
        """Raises `BadInput` for images of another size than 28 x 28."""
        if size != SIDE:
            problem = f"the classifier is trained on images of {SIDE} x {SIDE} and not of {size} x {size}"
            raise BadInput(field, problem, f"Use {SIDE}")

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> FashionClassifier:
        """A freshly initialised network. Raises `BadInput` for images with colours, and as `validate` does."""
        self.validate(size)
        if channels != 1:
            problem = f"its images have {channels} channels"
            raise BadInput("--data.name", problem, "Choose grey images: the classifier is made for them")
        return FashionClassifier.init(num_classes, key=key)
