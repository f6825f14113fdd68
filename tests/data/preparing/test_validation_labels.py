"""The files in which the labels of ImageNet's validation images come, and what is wrong with some."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from umd_eqx.core.errors import BadInput
from umd_eqx.data.preparing.canonical import official_classes, official_validation_labels
from umd_eqx.data.preparing.validation import validation_labels

CLASSES = ("n01440764", "n02084071", "n03000134")
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (3, 1, 2, 4)]  # as they lie in the archive
LABELS = {NAMES[1]: CLASSES[2], NAMES[2]: CLASSES[0], NAMES[0]: CLASSES[0], NAMES[3]: CLASSES[1]}
BY_NAME = sorted(LABELS.items())
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
IDS = {CLASSES[0]: 2, CLASSES[1]: 3, CLASSES[2]: 1}
"""As in the development kit, not in the order of the WordNet ids."""


def read(folder: Path, file: str | None = None) -> list[str]:
    labels, _ = validation_labels(str(folder), NAMES, CLASSES, file)
    return labels


WANTED = [LABELS[name] for name in NAMES]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("imagenet_2012_validation_synset_labels.txt", [label for _, label in BY_NAME]),
        ("validation_labels.txt", [f"{label}\r" for _, label in BY_NAME]),
        ("LOC_val_solution.csv", ["ImageId,PredictionString", *(f"{n[:-5]},{c} 1 2 3 4" for n, c in BY_NAME[::-1])]),
        ("val.txt", [f"{n} {CLASSES.index(c)}" for n, c in BY_NAME[::-1]]),
        ("val.txt", [f"{n}\t{c}".replace("\t", " ") for n, c in BY_NAME]),
    ],
)
def test_each_kind_of_file_is_found_and_read(name, lines, tmp_path):
    (tmp_path / "readme.txt").write_text("not labels")
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert read(tmp_path) == WANTED


def kit_files() -> dict[str, bytes]:
    rows = [(IDS[name], name, 0) for name in CLASSES] + [(4, "n00001740", 2)]  # the last is not a leaf
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8")]
    synsets = np.array([(number, name, children) for number, name, children in rows], dtype=kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{IDS[label]}\n" for _, label in BY_NAME)
    return {"meta.mat": meta.getvalue(), TRUTH: truth.encode()}


def write_kit(folder: Path) -> None:
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, content in kit_files().items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_of_other_classes_are_those_of_their_sorted_names(tmp_path, first):
    ordered = sorted(CLASSES)
    (tmp_path / TRUTH).write_text("".join(f"{ordered.index(label) + first}\n" for _, label in BY_NAME))
    labels, origin = validation_labels(str(tmp_path), NAMES, CLASSES[::-1])
    assert labels == WANTED
    assert origin == f"{TRUTH}, numbers from {first} in the order of the sorted classes"
    (tmp_path / TRUTH).write_text("1\n2\n4\n1\n")
    with pytest.raises(BadInput, match=r"ground_truth.txt, line 3: 4 is not the number of a class"):
        read(tmp_path)
    thousand = [f"n{i:08d}" for i in range(1000)]
    with pytest.raises(BadInput, match=r"order of the development kit, whose meta.mat is missing"):
        validation_labels(str(tmp_path), NAMES, thousand)


def test_numbers_of_the_development_kit_are_not_those_of_sorted_wordnet_ids(tmp_path):
    write_kit(tmp_path)
    assert read(tmp_path) == WANTED
    (tmp_path / TRUTH).write_bytes(kit_files()[TRUTH])  # beside the kit
    assert read(tmp_path) == WANTED
    unpacked = tmp_path / "unpacked" / "ILSVRC2012_devkit_t12" / "data"
    unpacked.mkdir(parents=True)
    for name, content in kit_files().items():
        (unpacked / name).write_bytes(content)
    assert read(tmp_path / "unpacked") == WANTED
    (unpacked / "meta.mat").unlink()
    with pytest.raises(BadInput, match=r"order of the development kit, whose meta.mat is missing"):
        read(tmp_path / "unpacked")
    (unpacked / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file, not")
    with pytest.raises(BadInput, match=r"meta.mat cannot be read"):
        read(tmp_path / "unpacked")


def test_a_compressed_file_that_fills_the_memory_is_refused(tmp_path):
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{TRUTH}")
        info.size = 17 << 20
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    assert (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").stat().st_size < 2**20
    with pytest.raises(BadInput, match=r"cannot be read \(ILSVRC2012_\w+.txt takes 17825792 bytes\)"):
        read(tmp_path)


def test_a_file_may_be_given_and_wins(tmp_path):
    (tmp_path / "val_labels.txt").write_text("\n".join([CLASSES[0]] * 4))
    (tmp_path / "mine").write_text("\n".join(label for _, label in BY_NAME))
    assert read(tmp_path, str(tmp_path / "mine")) == WANTED
    with pytest.raises(BadInput, match=r"^validation_labels: there is no file"):
        read(tmp_path, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["n01440764"] * 3, "has 3 labels, but there are 4 validation images"),
        (["n01440764"] * 5, "has 5 labels, but there are 4 validation images"),
        (["n01440764", "", "n09", "n01440764", "n01440764"], "line 3: 'n09' is not one of the 3 classes"),
        ([f"{name} {i}" for i, name in enumerate(NAMES)], "line 4: '3' is not one of the 3 classes"),
        ([f"{name} {i + 1}" for i, name in enumerate(NAMES)], "numbers the classes, but not from 0"),
        ([f"{name} n01440764" for name in NAMES[:3]], f"has no label of {NAMES[3]}"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_file_and_line(lines, said, tmp_path):
    (tmp_path / "val_labels.txt").write_text("\n".join(lines))
    with pytest.raises(BadInput) as error:
        read(tmp_path)
    assert "val_labels.txt" in error.value.problem
    assert said in error.value.problem


def test_without_a_file_only_the_fifty_thousand_images_are_known(tmp_path):
    with pytest.raises(BadInput, match="no file of their labels"):
        read(tmp_path)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(50_000, 0, -1)]
    labels, origin = validation_labels(str(tmp_path), names, official_classes())
    assert origin == "tensorflow-datasets"
    # The first and the last validation image, as every list of them says.
    assert (labels[-1], labels[0]) == ("n01751748", "n02437616")
    assert np.unique(labels, return_counts=True)[1].tolist() == [50] * 1000
    assert official_validation_labels([*names[:-1], "other.JPEG"]) is None
