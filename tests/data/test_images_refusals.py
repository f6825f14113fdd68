"""What holds images and cannot be read is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from own_images import as_folder, as_npz, as_tars, drawn, tar_with

from umd_eqx.core.errors import BadInput
from umd_eqx.data.source_configs import Images


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def pickled(root: Path) -> None:
    np.savez(root / "a.npz", images=np.array([{"a": 1}], object))


def damaged_header(root: Path) -> None:
    as_tars(root, drawn(5))
    content = bytearray((root / "shard-000.tar").read_bytes())
    content[2048:2060] = b"x" * 12
    (root / "shard-000.tar").write_bytes(bytes(content))


def whole_labels(root: Path, labels) -> None:
    np.savez(root / "a.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array(labels))


REFUSED = {
    "npz cut short": (lambda root: (as_npz(root, drawn(9)), cut(root / "data.npz", 500)), r"data\.npz cannot be read"),
    "npz with a pickle": (pickled, r"a\.npz cannot be read \(Object arrays cannot be loaded"),
    "npz without images": (lambda root: np.savez(root / "a.npz", x=np.zeros(3)), r"has no array `images` \(it has x\)"),
    "npz of floats": (lambda root: np.savez(root / "a.npz", images=np.zeros((3, 8, 8))), "are float64, not uint8"),
    "npz of four channels": (
        lambda root: np.savez(root / "a.npz", images=np.zeros((3, 8, 8, 4), np.uint8)),
        r"have the shape \(3, 8, 8, 4\)",
    ),
    "npz of mixed channels": (
        lambda root: (as_npz(root, drawn(3), "a.npz"), as_npz(root, drawn(3, channels=3), "b.npz")),
        r"b\.npz are 8 x 8 x 3, and those in .*a\.npz 8 x 8 x 1",
    ),
    "npz that fills the memory": (
        lambda root: np.savez_compressed(root / "a.npz", images=np.zeros((2**17, 32, 32), np.uint8)),
        r"a\.npz take 0\.1 GB, more than 200 times the file's size",
    ),
    "too few labels": (lambda root: whole_labels(root, [0, 1]), r"has 4 images, and labels of the shape \(2,\)"),
    "labels that are not numbers": (lambda root: whole_labels(root, [0.5] * 4), "are float64, not integers"),
    "a label out of range": (lambda root: whole_labels(root, [0, 1, 2, 9]), r"a\.npz at row 3 has the label 9, but no"),
    "an empty class": (lambda root: whole_labels(root, [0, 0, 2, 2]), "row 2 has the label 2, but no .* label 1"),
    "withheld labels": (lambda root: whole_labels(root, [-1] * 4), "none of the labels is a class"),
    "tar cut short": (
        lambda root: (as_tars(root, drawn(5)), cut(root / "shard-000.tar", 2600)),
        "cut short at byte 2600",
    ),
    "tar cut between images": (
        lambda root: (as_tars(root, drawn(5)), cut(root / "shard-000.tar", 4096)),
        "cut short at byte 4096",
    ),
    "tar with a damaged header": (damaged_header, "cut short at byte 2048 .there is no valid header"),
    "not a tar": (lambda root: (root / "a.tar").write_bytes(b"x" * 2000), r"a\.tar is damaged or cut short at byte 0"),
    "a tar without images": (lambda root: tar_with(root / "a.tar", ("x.txt", b"")), "contains no images"),
    "two images of a key": (
        lambda root: tar_with(root / "a.tar", ("x.png", b"1"), ("x.jpg", b"2")),
        "two images with the key x, the second at byte 1024",
    ),
    "not parquet": (lambda root: (root / "a.parquet").write_bytes(b"x" * 2000), r"a\.parquet cannot be read"),
    "two kinds": (lambda root: (as_npz(root, drawn(3)), as_tars(root, drawn(3))), r"several kinds \(\.npz, \.tar\)"),
    "a stray file": (
        lambda root: (as_folder(root, drawn(3)), as_npz(root, drawn(3))),
        "both images in folders and data",
    ),
    "a file of no split": (
        lambda root: (as_npz(root, drawn(3), "train.npz"), as_npz(root, drawn(3), "more.npz")),
        r"more\.npz belongs to no split",
    ),
    "an empty class folder": (lambda root: (as_folder(root, drawn(3)), (root / "x").mkdir()), "x has no images"),
    "only train has labels": (
        lambda root: (as_npz(root, drawn(3), "train.npz"), as_npz(root, [(drawn(1)[0][0], None)], "test.npz")),
        "train has labels, but test has none",
    ),
    "nothing": (lambda root: (root / "notes.txt").write_text(""), "contains no images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line_that_names_it(tmp_path, case):
    make, said = REFUSED[case]
    make(tmp_path)
    with pytest.raises(BadInput, match=said) as error:
        Images(str(tmp_path)).describe("train", "test")
    assert error.value.field == "data.source.dir"
    assert len(str(error.value).splitlines()) == 1


def test_fields_that_are_not_valid_are_refused(tmp_path):
    for source, field in (
        (Images(), "dir"),
        (Images(str(tmp_path / "nothing")), "dir"),
        (Images(str(tmp_path), channels=2), "channels"),
        (Images(str(tmp_path), classes=0), "classes"),
    ):
        with pytest.raises(BadInput) as error:
            source.splits()
        assert error.value.field == f"data.source.{field}"
