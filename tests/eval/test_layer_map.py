"""Probe accuracy by layer and noise level, on networks whose layers are known and against the few-shot probe."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Fake, Source, blobs, context, noise, pixels

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Representation
from umd_eqx.eval import FewShot
from umd_eqx.eval.features import extract
from umd_eqx.eval.layers import chosen_layers, draw_images, feature_batches, layer_map, require_layers
from umd_eqx.models import AbstractLayeredModel

KEY = jax.random.key(3)
PROBE = FewShot(shots=4, seeds=3, test_images=None, knn=1)


class Known(Fake, AbstractLayeredModel):
    """Layer 1 says nothing, layer 2 the pixels, layer 3 twice the pixels and their negative."""

    layers = ("first", "second", "third")
    represented_layer = 2

    def represent_layers(self, x, cond):
        flat = x.reshape(-1)
        both = jnp.concatenate([2 * flat, -flat])
        return (
            Representation(jnp.zeros(3), jnp.zeros(3)),
            Representation(flat, jnp.full(x.size, x.mean())),
            Representation(both, both),
        )


def mapped(model: AbstractLayeredModel, given: Any, probe: FewShot = PROBE, levels=(0.0,), layers=(), **options: Any):
    numbers = chosen_layers(model, layers, "layers")
    return layer_map(model, given, draw_images(probe, given), numbers, levels, KEY, l2=probe.l2, **options)


def features(model: Any, given: Any, indices: np.ndarray, layers: tuple[int, ...] | None, kind="both", time=0.0) -> Any:
    parts = list(feature_batches(model, given, "test", indices, layers, kind, time, KEY))
    each = zip(*(part.features for part in parts), strict=True)
    return [np.concatenate(layer) for layer in each], np.concatenate([part.indices for part in parts])


def test_the_features_of_each_layer_are_known():
    source = noise(21)
    given, indices = context(source, source, batch_size=8), np.array([4, 20, 7, 0, 1, 2, 3, 5, 11])
    (one, three), rows = features(Known(), given, indices, (1, 3), "class_tokens")
    flat = pixels(source, indices).reshape(9, -1)
    np.testing.assert_array_equal(rows, indices)
    np.testing.assert_array_equal(one, np.zeros((9, 3)))
    np.testing.assert_allclose(three, np.concatenate([2 * flat, -flat], axis=1), atol=1e-6)


def test_a_probe_finds_the_classes_where_they_are_and_nowhere_else():
    given = context(blobs(60, 0), blobs(21, 1))
    found = mapped(Known(), given, levels=(0.0, 1.0), kind="class_tokens")
    assert found.layers == ("first", "second", "third")
    assert found.spread is not None
    assert found.mean.shape == found.spread.shape == (3, 2)
    # Without information every image is given the same class.
    assert found.mean[0, 0] == pytest.approx(100 * 6 / 21)
    np.testing.assert_array_equal(found.mean[1:, 0], 100.0)
    assert (found.mean[1:, 1] < 60).all()  # of noise
    np.testing.assert_array_equal(found.spread[:, 0], 0.0)


@pytest.mark.parametrize(
    ("kind", "time", "l2"), [("class_tokens", 0.3, 1024.0), ("patches", 0.0, 1024.0), ("both", 0.0, None)]
)
def test_the_cell_of_the_representation_is_the_few_shot_probe(random_model, kind, time, l2):
    model = random_model(8, channels=1, variant="nano/4")
    given = context(noise(60), noise(37, seed=1), devices=1)
    probe = dataclasses.replace(PROBE, time=time, l2=l2, features=(kind,), raw_pixels=False, pool=50, test_images=30)
    expected = probe.build(given)(model, KEY).scalars[f"{kind}/top1"]
    found = mapped(model, given, probe, levels=(0.0, 0.3, 0.6), kind=kind)
    row, column = model.represented_layer - 1, found.levels.index(time)
    assert found.mean[row, column] == expected
    # A part of the map is that part of the whole.
    part = mapped(model, given, probe, levels=(time,), layers=(2, 1, 2), kind=kind)
    assert part.layers == ("encoder 1", "encoder 2")
    np.testing.assert_array_equal(part.mean[:, 0], found.mean[:2, column])


@pytest.mark.parametrize("time", [0.0, 0.4])
def test_without_layers_the_features_are_those_of_the_evaluations(random_model, time):
    source = noise(20)
    source.broken = (3,)
    given, model = context(source, source, batch_size=8, devices=2), random_model(8, channels=1)
    expected = extract(model, given, "test", np.arange(20), time, KEY)
    for kind in ("class_tokens", "patches", "both"):
        (found,), rows = features(model, given, np.arange(20), None, kind, time)
        np.testing.assert_array_equal(found, expected.of(kind))
        np.testing.assert_array_equal(rows, np.delete(np.arange(20), 3))
        (same,), _ = features(model, given, np.arange(20), (model.represented_layer,), kind, time)
        np.testing.assert_array_equal(same, expected.of(kind))


def test_images_that_cannot_be_read_are_left_out():
    train, test = blobs(60, 0), blobs(20, 1)
    wrong = Source(test.images, np.where(np.arange(20) % 4 == 0, 1, test._labels))
    train.broken = (3, 10)
    wrong.broken = (0, 4, 8, 12, 16)
    assert mapped(Known(), context(train, wrong), layers=(2,)).mean[0, 0] == 100.0


def test_progress_counts_every_image_once_for_each_level():
    seen, phases = [], []
    given = dataclasses.replace(context(blobs(60, 0), blobs(21, 1), batch_size=8), phase=phases.append)
    drawn = draw_images(PROBE, given)
    mapped(Known(), given, levels=(0.0, 0.5), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 2 * (len(drawn.train) + len(drawn.test))
    assert phases == ["fitting probes"] * 2


def test_a_layer_that_is_not_there_and_a_network_without_layers_are_refused():
    for number in (0, 4, -1):
        with pytest.raises(
            BadInput, match=rf"layers: {number} is not the number of a layer. Use 1 \(first\) .. 3 \(th"
        ):
            chosen_layers(Known(), (1, number), "layers")
    assert chosen_layers(Known(), (), "layers") == (1, 2, 3)
    with pytest.raises(BadInput, match="run: Fake does not represent images after each of its layers"):
        require_layers(Fake(), "run")
