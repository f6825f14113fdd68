"""Reference statistics in a file: the same numbers, and only for what they were made from."""

import dataclasses

import numpy as np
import pytest
from eval.fakes import Source, blobs, context
from eval.test_generation_metrics import Rows

from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.eval import Generation
from umd_eqx.eval.generation_metrics import ReferenceStatistics
from umd_eqx.eval.measure import measure
from umd_eqx.eval.protocol import ADM50K, UMD10K, scale
from umd_eqx.eval.statistics_file import load_statistics, save_statistics

PROTOCOL = dataclasses.replace(scale(UMD10K, 40), reference_rows=30)


class Resized(Source):
    """Images that were downsampled when they were prepared."""

    def __init__(self, images: Source, resize: str | None):
        super().__init__(images.images, images.labels(np.arange(len(images))))
        self.resize = resize


def reference(resize: str | None = "box", seed: int = 1, protocol=PROTOCOL, extractor=None, **options):
    extractor = Rows() if extractor is None else extractor
    train, test = Resized(blobs(48, 0), resize), Resized(blobs(44, seed), resize)
    return ReferenceStatistics(context(train, test, devices=1), protocol, extractor, **options)


@pytest.fixture
def file(tmp_path) -> str:
    made = reference()
    path = str(tmp_path / "real.safetensors")
    save_statistics(path, made.real, made.origin)
    return path


def test_the_numbers_are_those_of_the_images(file, monkeypatch):
    computed = reference().real
    monkeypatch.setattr("umd_eqx.eval.generation_metrics.real_images", None)  # nothing is computed
    stored = reference(file=file).real
    assert stored.statistics.count == 44
    np.testing.assert_array_equal(stored.statistics.mean, computed.statistics.mean)
    np.testing.assert_array_equal(stored.statistics.covariance, computed.statistics.covariance)
    np.testing.assert_array_equal(stored.features, computed.features)
    assert len(stored.features) == 30


def test_metrics_are_the_same_from_a_file(file):
    fake = ReferenceStatistics(context(blobs(48, 0), blobs(40, 9), devices=1), PROTOCOL, Rows()).real
    assert measure(reference(file=file).real, fake, "rows") == measure(reference().real, fake, "rows")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resize": "adm"}, "was made from images downsampled by the resize 'box', and now it is 'adm'"),
        ({"resize": None}, "was made from images downsampled by the resize 'box', and now it is none"),
        ({"seed": 2}, "was made from other images (44 images, "),
        ({"protocol": scale(ADM50K, 40)}, "was made from the validation images, and now it is train"),
        ({"protocol": dataclasses.replace(PROTOCOL, reference_size="adm")}, "was made from images resized by 'squash'"),
        ({"protocol": dataclasses.replace(PROTOCOL, reference_rows=31)}, "was made from 30 rows of features"),
        ({"extractor": Rows("others")}, "was made from the extractor rows, and now it is others"),
    ],
)
def test_a_file_of_anything_else_is_refused(options, said, file):
    with pytest.raises(BadInput) as error:
        _ = reference(file=file, field="eval.generation.statistics", **options).real
    assert error.value.field == "eval.generation.statistics"
    assert said in error.value.problem


def test_files_that_are_no_statistics_are_refused(file, tmp_path):
    expected = reference().origin
    tensors, texts = read_tensors(file)
    other = tmp_path / "other.safetensors"
    for held, told, said in (
        (tensors, {}, "holds no reference statistics"),
        ({**tensors, "covariance": tensors["covariance"][1:]}, texts, "is damaged"),
        ({**tensors, "mean": tensors["mean"] * np.nan}, texts, "is damaged"),
        ({"mean": tensors["mean"]}, texts, "is damaged"),
    ):
        write_tensors(other, held, told)
        with pytest.raises(BadInput, match=said):
            load_statistics(other, expected)
    other.write_bytes(b"no such format")
    with pytest.raises(BadInput, match=r"^statistics: .* is not a readable safetensors file"):
        load_statistics(other, expected)


def test_training_refuses_such_a_file_before_it_begins(file):
    evaluator = Generation(statistics=file, extractor="fashion", samples=40)
    with pytest.raises(BadInput, match=r"^eval.generation.statistics: .* was made from 30 rows of features"):
        evaluator.build(reference().context)
