"""Inception score, precision and recall, density and coverage, on sets whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umd_eqx.core.errors import BadInput
from umd_eqx.eval import scores
from umd_eqx.eval.scores import density_coverage, inception_score, precision_recall, radii


class TestInceptionScore:
    def test_sure_and_balanced_is_the_number_of_classes(self):
        assert inception_score(np.tile(np.eye(4), (5, 1)), splits=5) == pytest.approx((4.0, 0.0))

    def test_always_the_same_is_one(self):
        assert inception_score(np.full((12, 3), 1 / 3), splits=3) == pytest.approx((1.0, 0.0))
        assert inception_score(np.eye(3)[np.zeros(12, int)], splits=3) == pytest.approx((1.0, 0.0))

    def test_by_hand(self):
        # p(y) = (.5, .5); KL of each = .9 log 1.8 + .1 log .2
        divergence = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
        probabilities = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
        assert inception_score(probabilities, splits=1)[0] == pytest.approx(np.exp(divergence), rel=1e-6)

    def test_splits_are_consecutive(self):
        # 7 images in 2 splits: 3 and 4. The first says one class, the second all four.
        probabilities = np.concatenate([np.eye(4)[[1, 1, 1]], np.eye(4)])
        assert inception_score(probabilities, splits=2) == pytest.approx((2.5, 1.5))

    @given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 5))
    def test_is_between_one_and_the_classes(self, seed: int, classes: int, splits: int):
        probabilities = np.random.default_rng(seed).dirichlet(np.full(classes, 0.1), 20)
        mean, std = inception_score(probabilities, splits)
        assert 1.0 - 1e-12 <= mean <= classes + 1e-9
        assert std >= 0.0

    def test_too_few_are_refused(self):
        with pytest.raises(BadInput, match="samples: 9 images are too few for 10 splits"):
            inception_score(np.full((9, 2), 0.5))
        with pytest.raises(BadInput, match="splits"):
            inception_score(np.full((9, 2), 0.5), splits=0)


def line(*places: float) -> np.ndarray:
    return np.array(places, np.float32)[:, None]


class TestNeighbours:
    def test_radii_by_hand(self):
        np.testing.assert_allclose(radii(line(0, 1, 3, 7), 1), [1, 1, 4, 16])
        np.testing.assert_allclose(radii(line(0, 1, 3, 7), 2), [9, 4, 9, 36])

    def test_by_hand(self):
        # Balls of the real images, k = 1: [-1, 1], [0, 2], [8, 12], [8, 12]; of the fake: [0, 1], [0, 1], [1, 199].
        real, fake = line(0, 1, 10, 12), line(0, 1, 100)
        real[3] = 12
        assert radii(real, 1).tolist() == [1, 1, 4, 4]
        assert precision_recall(real, fake, k=1) == pytest.approx((2 / 3, 1.0))
        # Open balls: 0 and 1 are each in their own copy's ball alone.
        assert density_coverage(real, fake, k=1) == pytest.approx((2 / 3, 0.5))

    def test_of_a_set_with_itself(self):
        x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        assert precision_recall(x, x) == (1.0, 1.0)
        assert density_coverage(x, x) == pytest.approx((1.0, 1.0))  # an image, and 4 of its 5 neighbours

    def test_of_what_is_far_away(self):
        x = np.random.default_rng(0).normal(size=(30, 3))
        assert precision_recall(x, x + 100.0) == (0.0, 0.0)
        assert density_coverage(x, x + 100.0) == (0.0, 0.0)

    def test_one_mode_of_two_is_precise_and_forgets(self):
        rng = np.random.default_rng(0)
        one = rng.normal(size=(100, 2))
        real = np.concatenate([one, rng.normal(size=(100, 2)) + 50.0])
        fake = rng.normal(size=(200, 2))
        precision, recall = precision_recall(real, fake)
        density, coverage = density_coverage(real, fake)
        assert precision > 0.9
        assert 0.4 < recall <= 0.5
        assert 0.4 < coverage <= 0.5
        assert density == pytest.approx(1.0, abs=0.1)  # half of the balls, each with twice the fakes
        # The other way round the two change places.
        assert precision_recall(fake, real) == (recall, precision)

    def test_density_of_independent_draws_is_one(self):
        rng = np.random.default_rng(0)
        found = [density_coverage(*rng.normal(size=(2, 200, 4))) for _ in range(30)]
        density, coverage = np.mean(found, axis=0)
        assert density == pytest.approx(1.0, abs=0.05)
        # Naeem et al. 2020, eq. 9: 1 - (N-1)...(N-k) / (2N-1)...(2N-k)
        ratio = np.prod((199 - np.arange(5.0)) / (399 - np.arange(5.0)))
        assert coverage == pytest.approx(1.0 - ratio, abs=0.01)

    def test_copies_are_at_distance_zero(self):
        x = np.tile(np.random.default_rng(0).normal(size=(3, 333)) + 5.0, (9, 1))
        assert (radii(x, 3) == 0.0).all()
        assert precision_recall(x, x) == (1.0, 1.0)

    def test_chunks_change_nothing(self, monkeypatch):
        rng = np.random.default_rng(0)
        real, fake = rng.normal(size=(41, 3)), rng.normal(size=(23, 3)) + 0.5
        whole = precision_recall(real, fake), density_coverage(real, fake)
        monkeypatch.setattr(scores, "_MAX_ENTRIES", 100)  # four rows at once, or two
        assert (precision_recall(real, fake), density_coverage(real, fake)) == whole

    @given(st.integers(0, 1000), st.integers(1, 4))
    def test_are_those_of_brute_force(self, seed: int, k: int):
        rng = np.random.default_rng(seed)
        real, fake = rng.normal(size=(12, 2)), rng.normal(size=(9, 2)) + 0.3

        def distances(x, y):
            return np.linalg.norm(x[:, None] - y, axis=-1)

        real_balls = np.sort(distances(real, real), axis=1)[:, k]
        fake_balls = np.sort(distances(fake, fake), axis=1)[:, k]
        between = distances(real, fake)
        inside = between <= real_balls[:, None]
        expected = inside.any(axis=0).mean(), (between <= fake_balls).any(axis=1).mean()
        assert precision_recall(real, fake, k) == pytest.approx(expected)
        assert density_coverage(real, fake, k) == pytest.approx((inside.sum() / (k * 9), inside.any(axis=1).mean()))

    def test_too_few_are_refused(self):
        many = np.random.default_rng(0).normal(size=(9, 2))
        for metric in (precision_recall, density_coverage):
            with pytest.raises(BadInput, match=r"samples: 3 images are too few for 3 neighbours.*4 or more"):
                metric(many[:3], many, k=3)
            with pytest.raises(BadInput, match="neighbours"):
                metric(many, many, k=0)
            with pytest.raises(BadInput, match="samples"):
                metric(many, many[:0])
        with pytest.raises(BadInput, match="too few"):
            precision_recall(many, many[:3], k=3)


def test_features_of_two_extractors_are_refused():
    with pytest.raises(ValueError, match="not from the same extractor"):
        scores._centred(np.zeros((9, 2)), np.zeros((9, 1)))  # whose difference numpy would broadcast
