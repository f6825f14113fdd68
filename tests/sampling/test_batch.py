"""Many samples: what they may depend on, and what not."""

import jax
import numpy as np
import pytest
from sampling.known import Sure

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import NO_CLASS
from umd_eqx.sampling import DDIM, sample

PATH, SAMPLER, KEY = CosineTable(), DDIM(3, 1.0), jax.random.key(0)
DENOISER = SAMPLER.denoiser(Sure(), PATH)
LABELS = np.arange(11) % 4


@pytest.fixture(scope="module")
def images():
    return sample(DENOISER, SAMPLER, LABELS, KEY, batch_size=8, mesh=make_mesh())


def test_an_image_for_each_label(images):
    assert images.shape == (11, 2, 2, 1)
    assert len(np.unique(images.round(4).reshape(11, -1), axis=0)) == 11


@pytest.mark.parametrize(("batch_size", "devices"), [(4, 1), (3, 2)])
def test_neither_batches_nor_devices_change_an_image(images, batch_size, devices):
    mesh = make_mesh(jax.devices()[:devices])
    again = sample(DENOISER, SAMPLER, LABELS, KEY, batch_size=batch_size, mesh=mesh)
    np.testing.assert_allclose(again, images, atol=1e-6)


def test_more_images_do_not_change_the_first(images):
    again = sample(DENOISER, SAMPLER, LABELS[:5], KEY, batch_size=8, mesh=make_mesh())
    np.testing.assert_array_equal(again, images[:5])


def test_another_key_gives_other_images(images):
    other = sample(DENOISER, SAMPLER, LABELS, jax.random.key(1), batch_size=8, mesh=make_mesh())
    assert np.abs(other - images).max(axis=(1, 2, 3)).min() > 1e-3


def test_labels_reach_the_network(images):
    # Handed-in noise is the same for all, so that only labels (and the noise on the way) are left to differ.
    noise = np.zeros((11, 2, 2, 1), np.float32)
    still = DDIM(3, 0.0, head="x0")
    found = sample(still.denoiser(Sure(), PATH), still, LABELS, KEY, batch_size=8, mesh=make_mesh(), noise=noise)
    for label in range(4):
        rows = found[label == LABELS]
        np.testing.assert_array_equal(rows, rows[:1].repeat(len(rows), axis=0))
    assert len(np.unique(found[:, 0, 0, 0])) == 4


@pytest.mark.parametrize("label", [10, 1000, -2])
def test_a_label_that_is_not_a_class_is_refused(label):
    with pytest.raises(BadInput, match=rf"labels: {label} is not one of the 10 classes. Use 0 .. 9, or NO_CLASS"):
        sample(DENOISER, SAMPLER, np.array([0, label]), KEY, mesh=make_mesh())
    without = SAMPLER.denoiser(Sure(num_classes=None), PATH)
    assert sample(without, SAMPLER, np.array([label]), KEY, mesh=make_mesh()).shape == (1, 2, 2, 1)


def test_no_class_can_be_asked_for():
    found = sample(DENOISER, SAMPLER, np.array([NO_CLASS, 9]), KEY, mesh=make_mesh())
    assert np.isfinite(found).all()


def test_progress_is_told():
    told = []
    sample(DENOISER, SAMPLER, LABELS, KEY, batch_size=8, mesh=make_mesh(), progress=lambda *at: told.append(at))
    assert told == [(8, 11), (11, 11)]


def test_no_labels_no_images():
    none = sample(DENOISER, SAMPLER, np.zeros(0, int), KEY, batch_size=8, mesh=make_mesh())
    assert none.shape == (0, 2, 2, 1)
