"""Small trees shaped like the originals of ImageNet: a tar of class tars, and a flat validation tar with its labels."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n02084071", "n03000134")
CMYK, PNG, TRUNCATED, ROTATED, GREY = (f"{CLASSES[0]}_{number}.JPEG" for number in (1, 2, 3, 4, 5))
LABEL_FILE = "imagenet_2012_validation_synset_labels.txt"


def picture(seed: int, mode: str = "RGB", **options) -> bytes:
    """A smooth JPEG (or another format) of a size that depends on the seed."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(40, 150, 2))
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "JPEG", **options})
    return buffer.getvalue()


def training_images(per_class: int = 6) -> dict[str, dict[str, bytes]]:
    """Files by class. The first class has one CMYK JPEG, a PNG named .JPEG, and others that are special."""
    found = {}
    for number, name in enumerate(CLASSES):
        found[name] = {f"{name}_{i}.JPEG": picture(100 * number + i) for i in range(per_class)}
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    special = {
        CMYK: picture(1, "CMYK"),
        PNG: picture(2, format="PNG"),
        TRUNCATED: picture(3)[:-400],
        ROTATED: picture(4, exif=exif),
        GREY: picture(5, "L"),
    }
    found[CLASSES[0]] |= special
    return found


def validation_images(count: int = 7) -> tuple[dict[str, bytes], list[str]]:
    """Files by name, and the class of each in the order of the names."""
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, count + 1)]
    labels = [CLASSES[(2 * i + 1) % len(CLASSES)] for i in range(count)]
    return {name: picture(1000 + i) for i, name in enumerate(names)}, labels


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar file of some files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_archives(
    folder: Path, train: Mapping[str, Mapping[str, bytes]] | None = None, validation: Mapping[str, bytes] | None = None
) -> Path:
    """The original layout. Neither the classes nor the validation images lie in the archives in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    train = training_images() if train is None else train
    found, labels = validation_images()
    found = found if validation is None else validation
    inner = {f"{name}.tar": tar_of(dict(train[name])) for name in reversed(list(train))}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(dict(reversed(found.items()))))
    (folder / LABEL_FILE).write_text("".join(f"{label}\n" for label in labels))
    return folder


def write_folders(folder: Path) -> Path:
    """The same images, unpacked into class folders."""
    for name, files in training_images().items():
        (folder / "train" / name).mkdir(parents=True)
        for file, content in files.items():
            (folder / "train" / name / file).write_bytes(content)
    files, labels = validation_images()
    for (file, content), name in zip(files.items(), labels, strict=True):
        (folder / "val" / name).mkdir(parents=True, exist_ok=True)
        (folder / "val" / name / file).write_bytes(content)
    return folder
