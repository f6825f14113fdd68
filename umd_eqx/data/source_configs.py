"""The configurations of data sources: one type for each kind of source."""

import abc
import dataclasses
import functools
import os

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.image_folder import FolderSource, Listing
from umd_eqx.data.source import Dataset, DataSource


@dataclasses.dataclass(frozen=True)
class AbstractSource(abc.ABC):
    """The configuration of a source of images. Its fields are flags: `--data.name`, `--data.dir`.

    The field `dir` is the location of the data. It is not part of the identity of a run and is not exported; all other
    fields are, and they must distinguish any two data sets. No field may have the name of a field of `DataConfig`.
    """

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits, by default train and test. Raises `BadInput` as `describe` does."""
        return ("train", "test")

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """Returns facts about the data. By default, opens both splits; an override should not need to read any image.

        **Arguments:** two splits, or parts of them such as `train[:99%]`.

        **Returns:** the number of images in each of the two splits, height and width (None if images may differ in
        size), channels and number of classes.

        **Raises:** `BadInput` naming a field of the source, `data.train_split` or `data.test_split`.
        """
        train, test = self.open(train_split), self.open(test_split, field="data.test_split")
        return train.spec._replace(num_train=len(train), num_test=len(test))

    @abc.abstractmethod
    def open(self, split: str, *, field: str = "data.train_split") -> DataSource:
        """Opens the images of a split, or of a part of one.

        **Arguments:** the split; `field` is the field named in the error for an unknown split.

        **Raises:** `BadInput` naming a field of the source or `field`.
        """

    def moved(self, dir: str | None) -> "AbstractSource":
        """Returns the same data at another location; None is the default location, or an unknown one.

        By default, replaces the field `dir`, or returns the source itself if it has no such field.
        """
        has_place = any(field.name == "dir" for field in dataclasses.fields(self))
        return dataclasses.replace(self, **{"dir": dir}) if has_place else self


@dataclasses.dataclass(frozen=True)
class TFDS(AbstractSource):
    """A data set prepared by TFDS in array_record format, read without TensorFlow.

    Its metadata are read once per instance.
    """

    name: str = "fashion_mnist"
    """Name of a TFDS data set in array_record format; fashion_mnist is included in the package."""
    dir: str | None = None
    """TFDS root, or the folder of one version. None: $TFDS_DATA_DIR, or the data sets of the package."""

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return Dataset(self.name, self.dir)

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits."""
        return self._dataset.splits

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """See `umd_eqx.data.source.describe`."""
        return self._dataset.describe(train_split, test_split)

    def open(self, split: str, *, field: str = "data.train_split") -> DataSource:
        """See `umd_eqx.data.source.open_source`."""
        return self._dataset.open(split, field=field)

    def moved(self, dir: str | None) -> "TFDS":
        """Returns the same data set in another TFDS root."""
        return dataclasses.replace(self, dir=dir)


@dataclasses.dataclass(frozen=True)
class ImageFolder(AbstractSource):
    """Image files in class folders, `dir/<split>/<class>/<image>` or `dir/<class>/<image>` (`Listing`).

    A label is the index of a class folder among the sorted names of all class folders. As in torchvision's
    `ImageFolder`, the EXIF orientation is ignored and transparency is dropped. Unlike there, class folders must not
    contain folders, and images are in a fixed random order. The files are listed once per instance.
    """

    dir: str | None = None
    """Local folder of the images: DIR/SPLIT/CLASS/IMAGE, or DIR/CLASS/IMAGE for a single split named train."""
    title: str | None = None
    """Name of the data set in reports and run directories. None: the last component of dir."""
    channels: int = 3
    """Number of channels to which all images are converted: 3 for RGB, 1 for greyscale."""

    def __post_init__(self):
        # The title stays the same when the folder is moved, because it identifies the data set of a run.
        if self.title is None and self.dir is not None:
            title = os.path.basename(os.path.abspath(os.path.expanduser(self.dir)))
            object.__setattr__(self, "title", title or "images")

    @functools.cached_property
    def _listing(self) -> Listing:
        if self.dir is None:
            raise BadInput("data.source.dir", "no folder of images is given", "Set `data.source.dir`")
        return Listing(os.path.expanduser(self.dir))

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the folders of class folders, or only `train` if there is a single level of folders."""
        return self._listing.splits

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """See `AbstractSource`. Height and width are None: no image is opened."""
        num_train = len(self._listing.part(train_split, "data.train_split").names)
        return self._spec(num_train, len(self._listing.part(test_split, "data.test_split").names))

    def open(self, split: str, *, field: str = "data.train_split") -> FolderSource:
        """See `AbstractSource`. Its `spec` counts the images of the splits `train` and `test`, 0 for a missing one."""
        files = self._listing.part(split, field)
        there = [split if split in self._listing.splits else None for split in ("train", "test")]
        counts = [0 if split is None else len(self._listing.whole(split).names) for split in there]
        return FolderSource(self._listing, files, self._spec(*counts))

    def moved(self, dir: str | None) -> "ImageFolder":
        """Returns the same data set, with the same title, in another folder."""
        return dataclasses.replace(self, dir=dir)

    def _spec(self, num_train: int, num_test: int) -> DataSpec:
        if self.channels not in (1, 3):
            raise BadInput(
                "data.source.channels", f"{self.channels} is neither 1 nor 3", "Use 3 for RGB, 1 for greyscale"
            )
        name = self.title or "images"
        return DataSpec(name, num_train, num_test, None, None, self.channels, len(self._listing.classes))


SOURCES: dict[str, type[AbstractSource]] = {"tfds": TFDS, "folder": ImageFolder}
"""The types of sources by their names, the values of `--data.source`."""
