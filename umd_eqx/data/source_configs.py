"""Where images come from, as a part of a configuration: one type for each kind of source."""

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

    A field `dir` says where the data lie. It is not part of a run's identity and is not exported; every other field is.
    Hence the other fields must tell two data sets apart. No field may have the name of a field of `DataConfig`.
    """

    def splits(self) -> tuple[str, ...]:
        """The names of the splits, by default train and test. Raises `BadInput` as `describe` does."""
        return ("train", "test")

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """The facts of the data. By default both splits are opened for it; reading an image should not be necessary.

        **Arguments:** two splits, or parts of them such as `train[:99%]`.

        **Returns:** the number of images in each of the two, height and width (None where images may differ), channels
        and number of classes.

        **Raises:** `BadInput` naming a field of the source (`--data.dir`), `--data.train-split` or `--data.test-split`.
        """
        train, test = self.open(train_split), self.open(test_split, field="--data.test-split")
        return train.spec._replace(num_train=len(train), num_test=len(test))

    @abc.abstractmethod
    def open(self, split: str, *, field: str = "--data.train-split") -> DataSource:
        """The images of a split, or of a part of one.

        **Arguments:** the split; `field` is the flag that an unknown split is blamed on.

        **Raises:** `BadInput` naming a field of the source or `field`.
        """

    def moved(self, dir: str | None) -> "AbstractSource":
        """The same data in another place; None stands for the usual place, or for an unknown one.

        By default another value of the field `dir`; a source without this field is the same everywhere.
        """
        has_place = any(field.name == "dir" for field in dataclasses.fields(self))
        return dataclasses.replace(self, **{"dir": dir}) if has_place else self


@dataclasses.dataclass(frozen=True)
class TFDS(AbstractSource):
    """A data set that TFDS prepared in array_record format, read without TensorFlow.

    Its description is read once for each object of this type.
    """

    name: str = "fashion_mnist"
    """A TFDS data set in array_record format; fashion_mnist ships with the package."""
    dir: str | None = None
    """A TFDS root or one version's folder. None: $TFDS_DATA_DIR, else what ships with the package."""

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return Dataset(self.name, self.dir)

    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return self._dataset.splits

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """As `umd_eqx.data.source.describe`."""
        return self._dataset.describe(train_split, test_split)

    def open(self, split: str, *, field: str = "--data.train-split") -> DataSource:
        """As `umd_eqx.data.source.open_source`."""
        return self._dataset.open(split, field=field)

    def moved(self, dir: str | None) -> "TFDS":
        """The same data set in another TFDS root."""
        return dataclasses.replace(self, dir=dir)


@dataclasses.dataclass(frozen=True)
class ImageFolder(AbstractSource):
    """Image files in class folders, `dir/<split>/<class>/<image>` or `dir/<class>/<image>` (`Listing`).

    Labels are the places of the sorted names of the class folders. As by torchvision's `ImageFolder`, the orientation
    in EXIF data is ignored and transparency is dropped. Unlike there, class folders hold no further folders, and images
    are in a fixed random order. The files are listed once for each object of this type.
    """

    dir: str | None = None
    """A folder of this machine with the images: DIR/SPLIT/CLASS/IMAGE, or DIR/CLASS/IMAGE for one split, train."""
    title: str | None = None
    """The name of the data set in reports and run directories. None: the last part of dir."""
    channels: int = 3
    """What every image is converted to: 3 for RGB, 1 for grey."""

    def __post_init__(self):
        # The title stays when the folder is moved, so that a run is told apart from those on other data.
        if self.title is None and self.dir is not None:
            title = os.path.basename(os.path.abspath(os.path.expanduser(self.dir)))
            object.__setattr__(self, "title", title or "images")

    @functools.cached_property
    def _listing(self) -> Listing:
        if self.dir is None:
            raise BadInput("--data.dir", "no folder of images is given", "Give one by --data.dir DIR.")
        return Listing(os.path.expanduser(self.dir))

    def splits(self) -> tuple[str, ...]:
        """The names of the folders of class folders; `train` alone where there is one level of folders."""
        return self._listing.splits

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """See `AbstractSource`. Height and width are None: no image is opened."""
        num_train = len(self._listing.part(train_split, "--data.train-split").names)
        return self._spec(num_train, len(self._listing.part(test_split, "--data.test-split").names))

    def open(self, split: str, *, field: str = "--data.train-split") -> FolderSource:
        """See `AbstractSource`. The source's spec counts the splits `train` and `test`; 0 where there is none."""
        files = self._listing.part(split, field)
        there = [split if split in self._listing.splits else None for split in ("train", "test")]
        counts = [0 if split is None else len(self._listing.whole(split).names) for split in there]
        return FolderSource(self._listing, files, self._spec(*counts))

    def moved(self, dir: str | None) -> "ImageFolder":
        """The same data set, by its title, in another folder."""
        return dataclasses.replace(self, dir=dir)

    def _spec(self, num_train: int, num_test: int) -> DataSpec:
        if self.channels not in (1, 3):
            raise BadInput("--data.channels", f"{self.channels} cannot work", "Use 3 for colour, 1 for grey")
        name = self.title or "images"
        return DataSpec(name, num_train, num_test, None, None, self.channels, len(self._listing.classes))


SOURCES: dict[str, type[AbstractSource]] = {"tfds": TFDS, "folder": ImageFolder}
"""The types of sources by the names that `--data.source` takes."""
