"""The same small images in every kind of container that is found by looking."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Labelled = list[tuple[np.ndarray, int | None]]


def encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def drawn(count: int, channels: int = 1, classes: int = 10, seed: int = 0) -> Labelled:
    """Images of 8 x 8 with their labels, like scikit-learn's digits."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (8, 8, channels), np.uint8), i % classes) for i in range(count)]


def as_folder(path: Path, images: Labelled) -> Path:
    for i, (image, label) in enumerate(images):
        folder = path if label is None else path / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(encode(image))
    return path


def as_npz(path: Path, images: Labelled, name: str = "data.npz", squeeze: bool = True) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    arrays = {"images": np.stack([image for image, _ in images])}
    if squeeze and arrays["images"].shape[-1] == 1:
        arrays["images"] = arrays["images"][..., 0]
    if images[0][1] is not None:
        arrays["labels"] = np.array([label for _, label in images])
    np.savez(path / name, **arrays)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def as_tars(path: Path, images: Labelled, name: str = "shard-{:03}.tar", each: int = 13) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), each):
        with tarfile.open(path / name.format(start // each), "w") as tar:
            for i, (image, label) in enumerate(images[start : start + each], start):
                add(tar, f"a/{i:05}.png", encode(image))
                if label is not None:
                    add(tar, f"a/{i:05}.cls", str(label).encode())
    return path


def as_parquet(path: Path, images: Labelled, name: str = "train-00000-of-00001.parquet", classes: int = 10) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.mkdir(parents=True, exist_ok=True)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    column = pyarrow.array([{"bytes": encode(image), "path": None} for image, _ in images], kind)
    columns = {"image": column}
    features: dict = {"image": {"_type": "Image"}}
    if images[0][1] is not None:
        columns["label"] = pyarrow.array([label for _, label in images], pyarrow.int64())
        features["label"] = {"names": [str(i) for i in range(classes)], "_type": "ClassLabel"}
    table = pyarrow.table(columns)
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), path / name, row_group_size=17)
    return path


KINDS: dict[str, Callable[[Path, Labelled], Path]] = {
    "folder": as_folder,
    "npz": as_npz,
    "tars": as_tars,
    "parquet": as_parquet,
}


def shuffled(images: Iterable, seed: int) -> list:
    some = list(images)
    return [some[i] for i in np.random.default_rng(seed).permutation(len(some))]


def tar_with(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add(tar, name, content)
