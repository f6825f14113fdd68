"""The configurations of data sources: one type for each kind of source."""

import abc
import dataclasses
import functools
import os
from collections.abc import Collection

from umd_eqx.core.errors import BadInput, require_local
from umd_eqx.core.types import DataSpec
from umd_eqx.data.collection import Collection as ImageCollection
from umd_eqx.data.content import digest_of_files
from umd_eqx.data.folders import holds_tfds
from umd_eqx.data.image_folder import FolderSource, Listing
from umd_eqx.data.looking import LAYOUTS, look
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

    def digest(self) -> str | None:
        """Returns a fingerprint of what is in the data, independent of their name and location.

        A run is continued only on data with the fingerprint that it was started on. None, the default: the fields of
        the source, except `dir`, are compared instead.

        **Raises:** `BadInput` naming a field of the source if the data cannot be read.
        """
        return None

    def located(self, names: Collection[str] = ()) -> "AbstractSource":
        """Returns the source that reads what is at `dir`: by default itself.

        **Arguments:** names of data sets that were not chosen by the user, and give way to the name of the folder.
        """
        del names
        return self

    def moved(self, dir: str | None) -> "AbstractSource":
        """Returns the same data at another location; None is the default location, or an unknown one.

        By default, replaces the field `dir`, or returns the source itself if it has no such field.
        """
        has_place = any(field.name == "dir" for field in dataclasses.fields(self))
        return dataclasses.replace(self, **{"dir": dir}) if has_place else self


def folder_name(dir: str) -> str:
    """Returns the name of a data set in a folder or file: the last component of its path, without its extension."""
    path = os.path.abspath(os.path.expanduser(dir))
    name = os.path.basename(path)
    return (name if os.path.isdir(path) else os.path.splitext(name)[0]) or "images"


@dataclasses.dataclass(frozen=True)
class TFDS(AbstractSource):
    """A data set prepared by TFDS in array_record or tfrecord format, read without TensorFlow.

    Its metadata are read once per instance.
    """

    name: str = "fashion_mnist"
    """Name of a TFDS data set in array_record or tfrecord format; fashion_mnist is included in the package."""
    dir: str | None = None
    """TFDS root, or the folder of one version; or images of your own, in class folders, .npz, .tar or .parquet files.
    None: $TFDS_DATA_DIR, or the data sets of the package."""

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return Dataset(self.name, self.dir)

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits."""
        return self._dataset.splits

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """Returns the `DataSpec` of two splits without opening an image."""
        return self._dataset.describe(train_split, test_split)

    def open(self, split: str, *, field: str = "data.train_split") -> DataSource:
        """Opens a split, or a part of one. Raises `BadInput` naming `field` for an unknown or empty split."""
        return self._dataset.open(split, field=field)

    def digest(self) -> str:
        """See `AbstractSource`: a fingerprint of the records and their features."""
        return self._dataset.digest

    def located(self, names: Collection[str] = ()) -> AbstractSource:
        """Returns `Images` if `dir` holds images and no TFDS data, otherwise itself.

        They are named as the folder if the name of this source is its default or one of `names`. Where nothing that can
        be read is found, or in a bucket, errors are those of a TFDS data set.
        """
        if self.dir is None or "://" in self.dir:
            return self
        root = os.path.expanduser(self.dir)
        if holds_tfds(root) or look(root) is None:
            return self
        return Images(self.dir, None if self.name in (TFDS.name, *names) else self.name)

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
            object.__setattr__(self, "title", folder_name(self.dir))

    @functools.cached_property
    def _listing(self) -> Listing:
        if self.dir is None:
            raise BadInput("data.source.dir", "no folder of images is given", "Set `data.source.dir`")
        require_local("data.source.dir", self.dir)
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

    def digest(self) -> str:
        """See `AbstractSource`: a fingerprint of the files (`digest_of_files`) and the channels."""
        listing = self._listing
        whole = [listing.whole(split) for split in listing.splits]
        paths = [os.path.join(listing.folders[f][0], name) for files in whole for name, f in zip(*files, strict=True)]
        return digest_of_files([(os.path.relpath(path, listing.name), path) for path in paths], f"{self.channels}")

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


@dataclasses.dataclass(frozen=True)
class Images(AbstractSource):
    """Images in a folder or file whose kind is found by looking (`umd_eqx.data.looking`, `umd_eqx.data.collection`).

    It may be a folder of class folders, with or without a level of splits above them, a folder of images without
    labels, or .npz files, tar files or Parquet files. Where there is a single split, one image in ten is held out as
    the split `test`. The kind is found once per instance.
    """

    dir: str | None = None
    """Local folder or file of the images: class folders, .npz, .tar or .parquet."""
    title: str | None = None
    """Name of the data set in reports and run directories. None: the last component of dir."""
    channels: int | None = None
    """Number of channels to which all images are converted, 3 or 1. None: 1 if all images are grey."""
    classes: int | None = None
    """Number of classes. None: as the files state, or counted."""

    def __post_init__(self):
        if self.title is None and self.dir is not None:
            object.__setattr__(self, "title", folder_name(self.dir))

    @functools.cached_property
    def _collection(self) -> ImageCollection:
        if self.dir is None:
            raise BadInput("data.source.dir", "no folder of images is given", "Set `data.source.dir`.")
        if self.channels not in (None, 1, 3):
            raise BadInput("data.source.channels", f"{self.channels} is neither 1 nor 3", "Omit it, or use 1 or 3")
        if self.classes is not None and self.classes < 1:
            raise BadInput("data.source.classes", f"{self.classes} is too small", "Omit it, or use 1 or more")
        require_local("data.source.dir", self.dir)
        root = os.path.expanduser(self.dir)
        if not os.path.exists(root):
            raise BadInput("data.source.dir", f"there is no folder or file {root}", LAYOUTS)
        return ImageCollection(root, self.title or "images", self.channels, self.classes)

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits: those that folders or files name, otherwise train and test."""
        return self._collection.splits

    def describe(self, train_split: str, test_split: str) -> DataSpec:
        """See `AbstractSource`. Height and width are None if the images may differ in size."""
        counts = (
            self._collection.count(split, field)
            for split, field in ((train_split, "data.train_split"), (test_split, "data.test_split"))
        )
        return self._collection.describe(*counts)

    def open(self, split: str, *, field: str = "data.train_split") -> DataSource:
        """Opens a split of the folder or shards, without decoding an image. Raises as `AbstractSource.open`."""
        return self._collection.open(split, field)

    def digest(self) -> str:
        """See `AbstractSource` and `Collection.digest`."""
        return self._collection.digest

    def moved(self, dir: str | None) -> "Images":
        """Returns the same data set, with the same title, in another folder."""
        return dataclasses.replace(self, dir=dir)


SOURCES: dict[str, type[AbstractSource]] = {"tfds": TFDS, "folder": ImageFolder, "images": Images}
"""The types of sources by their names, the values of `--data.source`."""
