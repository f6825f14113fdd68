"""The protocols: labels, rounding, names, and the record of a measurement."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Source, context
from hypothesis import given
from hypothesis import strategies as st

from umd_eqx.core.errors import BadInput
from umd_eqx.core.hashes import sha256_of_tree
from umd_eqx.core.types import NO_CLASS
from umd_eqx.data.transforms import ADMTransform, EvalTransform, SquashTransform
from umd_eqx.eval.distances import statistics_of
from umd_eqx.eval.generation_metrics import real_images
from umd_eqx.eval.protocol import (
    ADM50K,
    UMD10K,
    generation_result,
    labels_for,
    scale,
    statistics_hash,
    to_uint8,
)
from umd_eqx.models.extractors.base import AbstractExtractor, Activations


class TestRealImages:
    @pytest.mark.parametrize(
        ("protocol", "transform"), [(UMD10K, SquashTransform(8)), (ADM50K, ADMTransform(8))], ids=["umd10k", "adm50k"]
    )
    def test_are_brought_to_size_as_the_protocol_says(self, protocol, transform):
        images = np.random.default_rng(0).integers(0, 256, (6, 20, 33, 1), np.uint8)
        source = Source(images, np.arange(6) % 4)
        given = dataclasses.replace(context(source, source), size=8)
        split = "test" if protocol.reference == "validation" else "train"
        found = np.concatenate(list(real_images(given, protocol, split, 6)))
        order = np.random.default_rng(0).permutation(6)
        expected = np.stack([(transform(images[i]) + 1) * 127.5 for i in order])
        np.testing.assert_array_equal(found, np.rint(expected))
        # The evaluations' own resize is another one.
        assert np.abs(expected - [(EvalTransform(8)(images[i]) + 1) * 127.5 for i in order]).mean() > 5

    def test_the_record_names_their_resize(self):
        assert (UMD10K.reference_size, ADM50K.reference_size) == ("squash", "adm")


class TestLabels:
    def test_of_the_paper(self):
        labels = labels_for(UMD10K, 1000)
        assert labels.shape == (10_240,)
        calls = labels.reshape(10, 1024)
        assert (calls[:, :1000] == np.arange(1000)).all()
        drawn = calls[:, 1000:]
        assert 0 <= drawn.min() <= drawn.max() < 1000
        assert len(np.unique(drawn)) > 150  # of 240, and not the same in each call

    def test_of_the_field(self):
        labels = labels_for(ADM50K, 1000)
        assert labels.shape == (50_000,)
        counts = np.bincount(labels, minlength=1000)
        # Drawn one by one: counts spread as a multinomial's, with a chi-squared of 999 +- 45.
        assert abs(((counts - 50) ** 2 / 50).sum() - 999) < 5 * 45

    @given(st.integers(1, 3000), st.integers(1, 40))
    def test_of_any_count(self, samples: int, classes: int):
        for protocol in (UMD10K, ADM50K):
            labels = labels_for(scale(protocol, samples), classes)
            assert labels.shape == (samples,)
            assert labels.dtype.kind == "i"
            assert 0 <= labels.min() <= labels.max() < classes
        first = labels_for(scale(UMD10K, samples), classes)[:1024]
        assert np.bincount(first, minlength=classes).min() >= len(first) // classes

    def test_depend_on_the_seed_alone(self):
        for protocol in (UMD10K, ADM50K):
            np.testing.assert_array_equal(labels_for(protocol, 7, 3), labels_for(protocol, 7, 3))
            assert (labels_for(protocol, 7, 3) != labels_for(protocol, 7, 4)).any()

    def test_a_network_without_labels_is_told_none(self):
        np.testing.assert_array_equal(labels_for(scale(UMD10K, 3), None), [NO_CLASS] * 3)

    def test_without_classes_there_are_none(self):
        with pytest.raises(BadInput, match="num_classes: 0 is too small"):
            labels_for(UMD10K, 0)


class TestRounding:
    def test_every_level_stays(self):
        levels = np.arange(256, dtype=np.uint8)
        images = jnp.asarray(levels / 127.5 - 1.0, jnp.float32)
        np.testing.assert_array_equal(to_uint8(images, "round"), levels)
        # Truncation is not the inverse: in float32 some levels come out a hair below themselves.
        truncated = np.asarray(to_uint8(images + 1e-5, "truncate"))
        np.testing.assert_array_equal(truncated, levels)

    def test_between_two_levels(self):
        images = jnp.asarray((np.array([9.4, 9.6, 10.0]) + 0.001) / 127.5 - 1.0, jnp.float32)
        assert to_uint8(images, "truncate").tolist() == [9, 9, 10]
        assert to_uint8(images, "round").tolist() == [9, 10, 10]

    @pytest.mark.parametrize("rounding", ["truncate", "round"])
    def test_beyond_the_ends(self, rounding):
        images = jnp.asarray([[-np.inf, -3.0, -1.0, 1.0, 1.1, np.inf]], jnp.float32)
        found = to_uint8(images, rounding)
        assert found.dtype == jnp.uint8
        assert found.tolist() == [[0, 0, 0, 255, 255, 255]]

    def test_truncation_is_half_a_level_darker(self):
        images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, 20_000), jnp.float32)
        exact = (np.asarray(images, np.float64) + 1.0) * 127.5
        assert (np.asarray(to_uint8(images, "truncate")) - exact).mean() == pytest.approx(-0.5, abs=0.01)
        assert (np.asarray(to_uint8(images, "round")) - exact).mean() == pytest.approx(0.0, abs=0.01)


class TestNames:
    def test_another_count_is_another_name(self):
        small = scale(UMD10K, 1024)
        assert (small.name, small.samples) == ("umd10k@1024", 1024)
        assert dataclasses.replace(small, name="umd10k", samples=10_240) == UMD10K
        assert scale(small, 512).name == "umd10k@512"
        assert scale(UMD10K, 10_240) is UMD10K
        assert scale(scale(ADM50K, 10), 50_000).name != scale(UMD10K, 50_000).name

    def test_no_images_are_refused(self):
        with pytest.raises(BadInput, match="samples"):
            scale(UMD10K, 0)


class Tiny(AbstractExtractor):
    """Nothing but weights."""

    weights: jnp.ndarray
    name: str = "fashion"

    def __call__(self, image) -> Activations:
        return Activations(self.weights, self.weights)


TINY = Tiny(jnp.arange(3.0))
STATISTICS = statistics_of(np.random.default_rng(0).normal(size=(20, 3)))


def record(metrics, protocol=UMD10K):
    return generation_result(
        protocol,
        STATISTICS,
        TINY,
        metrics,
        sampler={"name": "ddim", "steps": 125, "eta": 1.0},
        guidance={"scale": 2.0},
        precision="float32",
    )


class TestRecord:
    def test_holds_all_that_a_number_depends_on(self):
        found = json.loads(json.dumps(record({"fd_fashion": 1.5}, scale(UMD10K, 100)).to_json()))
        assert found["protocol"]["name"] == "umd10k@100"
        assert found["protocol"]["samples"] == 100
        assert {"labels", "rounding", "resize", "reference", "splits"} <= set(found["protocol"])
        assert found["reference"] == {"sha256": statistics_hash(STATISTICS), "count": 20}
        assert found["extractor"] == {"name": "fashion", "sha256": sha256_of_tree(TINY)}
        assert found["sampler"]["steps"] == 125
        assert found["guidance"] == {"scale": 2.0}
        assert found["precision"] == "float32"
        assert found["metrics"] == {"fd_fashion": 1.5}

    def test_refuses_to_call_it_fid(self):
        for name in ("fid", "is", "kid", "precision"):
            with pytest.raises(ValueError, match=f"{name}: not valid names"):
                record({name: 1.5, "fd_fashion": 1.0})
        assert record({"recognised": 0.9}).metrics == {"recognised": 0.9}
        inception = generation_result(
            UMD10K, STATISTICS, Tiny(TINY.weights, "inception"), {"fid": 1.5}, sampler={}, guidance={}, precision=""
        )
        assert inception.metrics == {"fid": 1.5}

    def test_hashes_tell_numbers_apart(self):
        other = dataclasses.replace(STATISTICS, mean=STATISTICS.mean + 1e-12)
        count = dataclasses.replace(STATISTICS, count=21)
        assert len({statistics_hash(s) for s in (STATISTICS, other, count)}) == 3
        assert statistics_hash(statistics_of(np.random.default_rng(0).normal(size=(20, 3)))) == statistics_hash(
            STATISTICS
        )
        moved = (Tiny(jnp.asarray([0.0, 2.0, 1.0])), Tiny(jnp.arange(3)), Tiny(jnp.arange(3.0)[None]))
        assert len({sha256_of_tree(tiny) for tiny in (TINY, *moved)}) == 4
        assert sha256_of_tree(Tiny(jnp.arange(3.0))) == sha256_of_tree(TINY)
