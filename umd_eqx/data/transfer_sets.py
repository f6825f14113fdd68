"""The data sets of the transfer benchmark: their splits, and where each is found in a folder of data sets."""

import dataclasses
import os
import shlex
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from umd_eqx.core.errors import BadInput
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.data.converted import Converted
from umd_eqx.data.folders import has_version, holds_tfds
from umd_eqx.data.image_folder import Listing
from umd_eqx.data.looking import SHARDS, look
from umd_eqx.data.source_configs import TFDS, AbstractSource, Images


class MissingSet(BadInput):
    """A data set that is not in the folder, with the command that prepares it as the hint."""


@dataclasses.dataclass(frozen=True)
class TransferSet:
    """A data set of the transfer benchmark.

    - `name`: its name in TFDS, and the name of its folder.
    - `train`, `test`: the splits that shots are drawn from and that are measured, as in the reference.
    - `smaller`: other pairs of splits, in order of preference, for data without these: a set that is stored with other
      splits, or that has fewer images than a part such as `train[:1000]` takes.
    - `config`: the configuration of TFDS; None for a set with a single one.
    - `shots_from`: the set whose training images are the shots, for a set that has none itself.
    - `classes`, `images`: the published number of classes, and of images in `train` and `test`; None: unknown.
    - `prepare`: the command that prepares it, with DIR for the folder. None: that of TFDS.
    """

    name: str
    train: str = "train"
    test: str = "test"
    smaller: tuple[tuple[str, str], ...] = ()
    config: str | None = None
    shots_from: str | None = None
    classes: int | None = None
    images: tuple[int, int] | None = None
    prepare: str | None = None

    def command(self, root: str) -> str:
        """Returns the command that prepares the set in the folder `root`. That of TFDS needs TensorFlow."""
        name = self.name if self.config is None else f"{self.name}/{self.config}"
        tfds = f"tfds build {name} --file_format=array_record --data_dir DIR"
        return (self.prepare or tfds).replace("DIR", shlex.quote(root))


TRANSFER_SETS: dict[str, TransferSet] = {
    each.name: each
    for each in (
        TransferSet(
            "imagenet2012",
            test="validation",
            classes=1000,
            images=(1_281_167, 50_000),
            prepare="python experiments/prepare.py --src TARS --out DIR --name imagenet2012",
        ),
        TransferSet("cifar100", classes=100, images=(50_000, 10_000)),
        TransferSet("stl10", classes=10, images=(5_000, 8_000)),
        TransferSet("dtd", classes=47, images=(1_880, 1_880)),
        TransferSet("oxford_iiit_pet", classes=37, images=(3_680, 3_669)),
        TransferSet("oxford_flowers102", classes=102, images=(1_020, 6_149)),
        TransferSet("food101", test="validation", classes=101, images=(75_750, 25_250)),
        TransferSet("stanford_dogs", classes=120, images=(12_000, 8_580)),
        TransferSet(
            "imagenet_v2",
            config="matched-frequency",
            shots_from="imagenet2012",
            classes=1000,
            images=(1_281_167, 10_000),
        ),
        TransferSet(
            "uc_merced",
            train="train[:1000]",
            test="train[1000:]",
            smaller=(("train", "test"), ("train[:48%]", "train[48%:]")),
            classes=21,
            images=(1_000, 1_100),
        ),
    )
}
"""The sets of the published benchmark by name, with the splits of its configuration."""


class OpenedSet(NamedTuple):
    """An opened data set.

    - `train`, `test`: the images that shots are drawn from, and the images that are measured.
    - `origin`: the name of the set that shots are drawn from.
    - `splits`: the two splits, for example `train` and `test`.
    - `renumbered`: whether classes are numbered by the names of class folders.
    - `digests`: the fingerprints of both (`AbstractSource.digest`).
    - `notes`: how the data differ from the published set, one clause each.
    """

    train: SkipBroken
    test: CountBroken
    origin: str
    splits: tuple[str, str]
    renumbered: bool
    digests: tuple[str | None, str | None]
    notes: tuple[str, ...]


def open_set(asked: TransferSet, root: str, channels: int, max_broken: int | None = None) -> OpenedSet:
    """Opens a data set in `root`: TFDS data, or images of any kind that is found by looking, in the folder of its name.

    **Arguments:**

    - `asked`: the set.
    - `root`: the folder of the data sets.
    - `channels`: 1 or 3, the channels of the network, to which images are converted.
    - `max_broken`: how many images of each split may be broken, as for `CountBroken`.

    **Raises:** `MissingSet`, or `BadInput` for data that cannot be read or that have no labels.
    """
    source = find_set(asked, root)
    shots, origin, numbers = (source, asked.name, None) if asked.shots_from is None else _shots_of(asked, source, root)
    if asked.shots_from is None:
        splits = _splits(asked, source)
    else:  # all images of a set without training images are test images, whatever its split is called
        splits = _splits(TRANSFER_SETS.get(origin, TransferSet(origin)), shots)[0], "+".join(source.splits())
    train, test = shots.open(splits[0]), source.open(splits[1], field="data.test_split")
    classes = train.spec.num_classes
    if not classes or not test.spec.num_classes:
        raise BadInput("data.source.dir", f"{asked.name} in {root} has no labels", "Give labelled images")
    if numbers is not None:
        train, test = Converted(train, channels, numbers[0]), Converted(test, channels, numbers[1], classes)
    else:
        train, test = Converted(train, channels), Converted(test, channels)
    if test.spec.num_classes != classes or (numbers is not None and numbers[1].max() >= classes):
        problem = (
            f"the {source.describe(splits[1], splits[1]).num_classes} classes of {asked.name} are not the {classes}"
        )
        raise BadInput("data.source.dir", f"{problem} of {origin}", "Prepare both from the published files")
    counted = _differences(asked, classes, (len(train), len(test)), splits if asked.shots_from is None else None)
    return OpenedSet(
        SkipBroken(train, max_broken, split=f"{origin}, {splits[0]}"),
        CountBroken(test, max_broken, split=f"{asked.name}, {splits[1]}"),
        origin,
        splits,
        numbers is not None,
        (shots.digest(), source.digest()),
        counted,
    )


def find_set(asked: TransferSet, root: str) -> AbstractSource:
    """Returns the source that reads a set in `root/NAME`. Raises `MissingSet`, or `BadInput` as `look` does."""
    for name in [asked.name] if asked.config is None else [f"{asked.name}/{asked.config}", asked.name]:
        if has_version(root, name):
            return TFDS(name, root)
    if "://" not in root:
        folder = os.path.join(os.path.expanduser(root), asked.name)
        if holds_tfds(folder):
            name = asked.name if asked.config is None else f"{asked.name}/{asked.config}"
            return TFDS(name, folder)
        for path in (folder, *(f"{folder}{suffix}" for suffix in SHARDS)):
            if look(path) is not None:
                return Images(path, asked.name)
    problem = f"there is no {asked.name} in {root}"
    known = asked.name in TRANSFER_SETS
    hint = f"Get it by `{asked.command(root)}`" if known else f"Put a folder {asked.name} of images or TFDS data there"
    raise MissingSet("data.source.dir", problem, hint)


def _splits(asked: TransferSet, source: AbstractSource) -> tuple[str, str]:
    """Returns the first of the pairs of splits that the data have. Raises `BadInput` for the first of them if none."""
    first: BadInput | None = None
    for train, test in ((asked.train, asked.test), *asked.smaller):
        try:
            source.describe(train, test)
        except BadInput as error:
            if error.field not in ("data.train_split", "data.test_split"):
                raise
            first = first or error
        else:
            return train, test
    assert first is not None
    raise first


Numbers = Int[np.ndarray, "classes"]


def _shots_of(
    asked: TransferSet, source: AbstractSource, root: str
) -> tuple[AbstractSource, str, tuple[Numbers, Numbers] | None]:
    """Returns the source of the shots of a set without training images, its name, and the numbers of their classes.

    Class folders that are named by numbers, as in the published files of imagenet_v2, are the classes of these numbers,
    whereas labels follow the order of the names, in which `10` is before `2`. Otherwise both have the same names.
    """
    wanted = TRANSFER_SETS.get(asked.shots_from or "", TransferSet(asked.shots_from or ""))
    try:
        shots = find_set(wanted, root)
    except MissingSet as error:
        problem = f"the shots of {asked.name} are training images of {wanted.name}, and {error.problem}"
        raise MissingSet(error.field, problem, error.hint) from error
    given = _numbers_of_class_folders(source)
    if given is None:
        return shots, wanted.name, None
    ours, count = _numbers_of_class_folders(shots), shots.splits()[0]
    in_order = np.arange(shots.describe(count, count).num_classes)
    if ours is None or not np.array_equal(np.sort(ours), in_order):
        ours = in_order
    return shots, wanted.name, (ours, given)


def _numbers_of_class_folders(source: AbstractSource) -> Numbers | None:
    """Returns the numbers that class folders are named by, in the order of labels; None unless all are numbers."""
    if not isinstance(source, Images) or source.dir is None:
        return None
    try:
        names = Listing(os.path.expanduser(source.dir)).classes
    except BadInput:  # another kind of images, which has numbers as labels
        return None
    return np.array([int(name) for name in names]) if all(name.isdecimal() for name in names) else None


def _differences(
    asked: TransferSet, classes: int, images: tuple[int, int], splits: tuple[str, str] | None
) -> tuple[str, ...]:
    notes = []
    if splits not in (None, (asked.train, asked.test)):
        notes.append(f"split into {' and '.join(splits or ())} instead of {asked.train} and {asked.test}")
    if asked.classes is not None and classes != asked.classes:
        notes.append(f"{classes:,} classes, published {asked.classes:,}")
    if asked.images is not None and images != asked.images:
        notes.append(
            f"{images[0]:,} training and {images[1]:,} test images, "
            f"published {asked.images[0]:,} and {asked.images[1]:,}"
        )
    return tuple(notes)
