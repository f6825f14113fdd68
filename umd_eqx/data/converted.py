"""A data source with other channels or other class numbers than the images are stored with."""

import numpy as np
from jaxtyping import Int

from umd_eqx.core.types import NO_CLASS, DataSpec
from umd_eqx.data.records import to_pixels
from umd_eqx.data.source import DataSource, Example


class Converted:
    """The images of another source, converted to 1 or 3 channels, with classes renumbered. Thread-safe.

    Grey images are repeated in all channels. Colour images are converted to grey by Pillow (ITU-R 601-2 luma), as when
    they are decoded for a network with one channel.

    **Arguments:**

    - `source`: the images.
    - `channels`: 1 or 3.
    - `classes`: for each class of `source`, its new number. None: unchanged.
    - `num_classes`: the number of classes after renumbering. None: unchanged.
    """

    def __init__(
        self,
        source: DataSource,
        channels: int,
        classes: Int[np.ndarray, "classes"] | None = None,
        num_classes: int | None = None,
    ):
        self._source, self._classes = source, classes
        count = source.spec.num_classes if num_classes is None else num_classes
        self.spec: DataSpec = source.spec._replace(channels=channels, num_classes=count)

    def __len__(self) -> int:
        return len(self._source)

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the classes of the given examples, -1 for those that the source has no class for."""
        labels = self._source.labels(indices)
        return labels if self._classes is None else np.where(labels < 0, NO_CLASS, self._classes[labels])

    def __getitem__(self, index: int) -> Example:
        """Returns the converted example `index`. Raises `BrokenImage` as the source does."""
        example = self._source[index]
        label = example["label"] if self._classes is None else int(self._classes[example["label"]])
        return {"image": to_pixels(example["image"], self.spec.channels), "label": label}
