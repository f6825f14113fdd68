"""Image files in class folders, listed once and read by index."""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.decoding import EncodedExample, EncodedImage, decode_image
from umd_eqx.data.folders import one_line
from umd_eqx.data.shuffle import epoch_order
from umd_eqx.data.source import BrokenImage, Example, require_class
from umd_eqx.data.splits import split_parts

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File name extensions of images, in lower or upper case: those of torchvision's `ImageFolder`."""

T = TypeVar("T")

LAYOUTS = "Use DIR/SPLIT/CLASS/IMAGE, or DIR/CLASS/IMAGE for a single split named train"


class ImageFiles(NamedTuple):
    """Image files: file `names[i]` in the class folder `folders[i]`, an index into `Listing.folders`."""

    names: np.ndarray
    folders: Int[np.ndarray, "n"]


class Content(NamedTuple):
    """The names in a folder, sorted: its folders, and its image files."""

    folders: list[str]
    images: list[str]


class Listing:
    """The image files of a folder, by split and class.

    The layout is `root/<split>/<class>/<image>` if a folder in `root` contains folders, and `root/<class>/<image>`
    otherwise; the latter has a single split, `train`. Names that begin with a dot, and files without an extension in
    `IMAGE_SUFFIXES`, are ignored. Links are followed.

    Each class folder is listed once, at first use. Within a split, the files are in a random order that depends only on
    their number. Each part of a split therefore contains images of all classes, as in TFDS data sets, which are
    shuffled when they are prepared.

    - `classes`: the sorted names of the class folders of all splits. The index of a name is the label.
    - `splits`: the sorted names of the splits.
    - `folders`: the path and label of each class folder.

    **Arguments:** a local folder. **Raises:** `BadInput` naming `data.source.dir` if it has none of these layouts.
    """

    def __init__(self, root: str):
        self.name = root
        self._listed: dict[int, Content] = {}
        self._read: dict[str, ImageFiles] = {}
        if not os.path.isdir(root):
            problem = f"{root} is not a folder" if os.path.exists(root) else f"there is no folder {root}"
            raise BadInput("data.source.dir", problem, f"Give a folder of images. {LAYOUTS}")
        top = scan(root)
        if top.images:
            raise BadInput("data.source.dir", f"{root} has images outside class folders ({top.images[0]})", LAYOUTS)
        if not top.folders:
            raise BadInput("data.source.dir", f"{root} contains no class folders", LAYOUTS)
        below = {name: scan(os.path.join(root, name)) for name in top.folders}
        if any(content.folders for content in below.values()):
            by_split = {name: content.folders for name, content in below.items() if content.folders}
            for name in by_split:
                if below[name].images:
                    path = os.path.join(root, name)
                    problem = f"{path} has images outside class folders ({below[name].images[0]})"
                    raise BadInput("data.source.dir", problem, LAYOUTS)
            paths = [os.path.join(root, split, name) for split, names in by_split.items() for name in names]
        else:
            by_split = {"train": top.folders}
            paths = [os.path.join(root, name) for name in top.folders]
            self._listed = dict(enumerate(below.values()))
        names = [name for folders in by_split.values() for name in folders]
        self.classes = tuple(sorted(set(names)))
        self.splits = tuple(by_split)
        labels = {name: label for label, name in enumerate(self.classes)}
        self.folders = tuple((path, labels[name]) for path, name in zip(paths, names, strict=True))
        ends = np.cumsum([len(folders) for folders in by_split.values()]).tolist()
        self._ranges = {s: range(e - len(by_split[s]), e) for s, e in zip(by_split, ends, strict=True)}

    def whole(self, split: str) -> ImageFiles:
        """Returns all files of a split.

        Raises `KeyError` for an unknown split, and `BadInput` for a class without images.
        """
        if split not in self._read:
            lists = [self._images(folder) for folder in self._ranges[split]]
            folders = np.repeat(np.asarray(self._ranges[split], np.int32), [len(images) for images in lists])
            order = epoch_order(len(folders), 0, 0)
            names = np.array([name for images in lists for name in images], object)
            self._read[split] = ImageFiles(names[order], folders[order])
        return self._read[split]

    def part(self, split: str, field: str) -> ImageFiles:
        """Returns the files of a split, or of a part of one such as `train[:99%]`, in the syntax of TFDS.

        Raises `BadInput` naming `field` if the split is unknown or empty.
        """
        sizes = {name: functools.partial(self._count, name) for name in self.splits}
        parts = split_parts(split, sizes, field=field, name=self.name)
        some = [(self.whole(name), rows) for name, rows in parts]
        names = np.concatenate([files.names[rows] for files, rows in some])
        return ImageFiles(names, np.concatenate([files.folders[rows] for files, rows in some]))

    def _count(self, split: str) -> int:
        return len(self.whole(split).names)

    def _images(self, folder: int) -> list[str]:
        path, _ = self.folders[folder]
        content = self._listed.pop(folder, None) or scan(path)
        if content.folders:
            problem = f"the class folder {path} contains a folder ({content.folders[0]})"
            raise BadInput("data.source.dir", problem, LAYOUTS)
        if not content.images:
            problem = f"the class folder {path} has no images ({', '.join(IMAGE_SUFFIXES)})"
            raise BadInput("data.source.dir", problem, "Remove the folder, or add images to it")
        return content.images


def scan(path: str) -> Content:
    """Returns the folders and image files in a folder. Images are identified by their names alone.

    Raises `BadInput` naming `data.source.dir` if it cannot be read.
    """
    folders, images = [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    images.append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
    except OSError as error:
        raise BadInput(
            "data.source.dir", f"{path} cannot be read ({error.strerror})", "Give a folder of images"
        ) from error
    return Content(sorted(folders), sorted(images))


class FolderSource:
    """Image files by index, decoded by Pillow on access. Thread-safe and picklable.

    **Arguments:**

    - `listing`: the listing that contains the files.
    - `files`: the files of this source.
    - `spec`: the description of the data set; images are converted to its `channels`.
    """

    def __init__(self, listing: Listing, files: ImageFiles, spec: DataSpec):
        self._paths = [path for path, _ in listing.folders]
        self._files, self.spec = files, spec
        self._labels = np.array([label for _, label in listing.folders], np.int64)[files.folders]

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the classes of the given images, from the names of their folders. No file is opened."""
        return self._labels[indices]

    def path_of(self, index: int) -> str:
        """Returns the path of the file of an image."""
        return os.path.join(self._paths[self._files.folders[index]], self._files.names[index])

    def __getitem__(self, index: int) -> Example:
        """Image `index`. Raises `BrokenImage` if its file cannot be read or decoded."""
        image, label = self._read(index, lambda content: decode_image(content, self.spec.channels))
        return {"image": image, "label": label}

    def encoded(self, index: int) -> EncodedExample:
        """Image `index` before it is decoded. Raises `BrokenImage` if its file or its header cannot be read."""
        return EncodedExample(*self._read(index, lambda content: EncodedImage(content, self.spec.channels)))

    def _read(self, index: int, decode: Callable[[bytes], T]) -> tuple[T, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in 0 .. {len(self) - 1}")
        label = require_class(index, int(self._labels[index]), self.spec.num_classes)
        path = self.path_of(index)
        try:
            with open(path, "rb") as file:
                image = decode(file.read())
        except MemoryError:
            raise
        except Exception as error:  # the decoders of Pillow raise various types
            raise BrokenImage(index, f"{path}: {one_line(error)}") from error
        return image, label
