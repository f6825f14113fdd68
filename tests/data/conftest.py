import json
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import CLASSES, encode, image_features, picture, put, write


@pytest.fixture(scope="session")
def grey_root(tmp_path_factory) -> Path:
    """40 + 3 grey images of 9 x 7; number 4 and 17 of the first are broken."""
    root = tmp_path_factory.mktemp("grey")
    train = [{"image": encode(picture(i, 9, 7, 1)), "label": i % 5} for i in range(40)]
    for i in (4, 17):
        train[i]["image"] = train[i]["image"][:30] + b"not a picture"
    test = [{"image": encode(picture(100 + i, 9, 7, 1)), "label": i} for i in range(3)]
    write(root, {"train": train, "test": test}, image_features((9, 7, 1)))
    return root


@pytest.fixture(scope="session")
def mislabelled_root(tmp_path_factory) -> Path:
    """20 + 3 grey images of ten classes; number 2, 7 and 11 of the first have the labels 10, 1000 and -1."""
    root = tmp_path_factory.mktemp("mislabelled")
    train = [{"image": encode(picture(i, 9, 7, 1)), "label": i % 10} for i in range(20)]
    for i, label in ((2, 10), (7, 1000), (11, -1)):
        train[i]["label"] = label
    folder = write(root, {"train": train, "test": train[:3]}, image_features((9, 7, 1), classes=1001))
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "10"  # TFDS would not write such labels
    (folder / "features.json").write_text(json.dumps(features))
    return root


@pytest.fixture(scope="session")
def colour_root(tmp_path_factory) -> Path:
    """Colour images of different sizes; the last one is stored grey."""
    root = tmp_path_factory.mktemp("colour")
    train = [{"image": encode(picture(i, 8 + i, 13 - i, 3)), "label": i} for i in range(5)]
    train.append({"image": encode(picture(5, 6, 6, 1)), "label": 4})
    write(root, {"train": train, "test": train[:2]}, image_features((None, None, None)))
    return root


@pytest.fixture
def flat(tmp_path) -> Path:
    """10 images of each of three classes; number i of class c is filled with 50 c + i."""
    root = tmp_path / "pets"
    for label, name in enumerate(CLASSES):
        for i in range(10):
            put(root / name / f"{i}.png", np.full((8 + label, 9, 3), 50 * label + i, np.uint8))
    return root
