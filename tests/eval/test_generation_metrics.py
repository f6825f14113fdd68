"""The one way from labels to the metrics of generated images."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import blobs, context

from umd_eqx.eval import generation_metrics as module
from umd_eqx.eval.generation_metrics import ReferenceStatistics, measure_generation
from umd_eqx.eval.protocol import UMD10K, labels_for, scale
from umd_eqx.models.extractors.base import AbstractExtractor, Activations

PROTOCOL = scale(UMD10K, 40)
TRAIN, TEST = blobs(48, 0), blobs(48, 1)


class Rows(AbstractExtractor):
    """Brightness of the pairs of rows, which is what tells `blobs` apart, the images of the data set "fake"."""

    name: str = eqx.field(static=True, default="rows")
    trained_on: ClassVar[str | None] = "fake"

    def __call__(self, image) -> Activations:
        features = image.reshape(4, -1).mean(axis=1)
        return Activations(features, features)


@pytest.fixture
def reference() -> ReferenceStatistics:
    return ReferenceStatistics(context(TRAIN, TEST, devices=1), PROTOCOL, Rows())


def perfect(labels: np.ndarray) -> np.ndarray:
    """Real training images of the classes asked for."""
    images = [TRAIN.images[np.flatnonzero(TRAIN.labels(np.arange(48)) == y)[i % 12]] for i, y in enumerate(labels)]
    return np.stack(images).astype(np.float32) / 127.5 - 1.0


def test_samples_are_drawn_for_the_protocols_labels_and_measured_against_real_images(reference, monkeypatch):
    asked, read = [], []
    images = module.real_images
    monkeypatch.setattr(module, "real_images", lambda *given: read.append(given[2]) or images(*given))

    def draw(labels: np.ndarray) -> np.ndarray:
        asked.append(labels)
        return perfect(labels)

    good = measure_generation(draw, reference, 4, seed=3)
    np.testing.assert_array_equal(asked[0], labels_for(PROTOCOL, 4, 3))
    assert good["recognised"] == 1.0
    bad = measure_generation(lambda labels: perfect((labels + 1) % 4) * 0.1, reference, 4)
    assert bad["recognised"] == 0.0
    assert bad["fd_rows"] > 10 * good["fd_rows"]
    assert read == ["test"]  # the features of the real images are taken once
    assert reference.baseline() < bad["fd_rows"]
    assert read == ["test", "train"]


def test_samples_that_are_not_finite_are_all_that_is_told(reference):
    def draw(labels: np.ndarray) -> np.ndarray:
        images = perfect(labels)
        images[:10] = np.nan
        return images

    assert measure_generation(draw, reference, 4) == {"not_finite": 0.25}


@pytest.mark.parametrize("title", ["rows_of_mine", "rows", "other"])
def test_classes_of_another_data_set_cannot_be_recognised(title):
    """Neither its number of classes nor a title that begins with the extractor's name makes a data set the same."""
    train, test = blobs(48, 0), blobs(48, 1)
    for source in (train, test):
        source.spec = source.spec._replace(name=title)
    reference = ReferenceStatistics(context(train, test, devices=1), PROTOCOL, Rows())
    assert "recognised" not in measure_generation(perfect, reference, 4)


def test_a_network_without_labels_has_none_that_could_be_recognised(reference):
    found = measure_generation(lambda labels: np.zeros((len(labels), 8, 8, 1), np.float32), reference, None)
    assert "recognised" not in found
    assert jnp.isfinite(found["fd_rows"])
