"""Frechet and kernel distances against closed forms and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umd_eqx.core.errors import BadInput
from umd_eqx.eval.distances import Statistics, add, frechet_distance, kid, merge, mmd, statistics_of


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 100) -> Statistics:
    return Statistics(count, np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def features(count: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


class TestStatistics:
    def test_are_those_of_numpy(self):
        x = features(50, 7)
        found = statistics_of(x)
        np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-11, atol=1e-13)
        assert found.count == 50

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 1000))
    def test_streamed_are_those_of_all_at_once(self, counts: list[int], seed: int):
        x = features(sum(counts), 4, seed)
        streamed = None
        for part in np.split(x, np.cumsum(counts)[:-1]):
            streamed = add(streamed, part)
        assert streamed is not None
        at_once = statistics_of(x)
        assert streamed.count == len(x)
        np.testing.assert_allclose(streamed.mean, at_once.mean, atol=1e-12)
        np.testing.assert_allclose(streamed.covariance, at_once.covariance, atol=1e-11)

    def test_a_mean_much_larger_than_the_spread_costs_nothing(self):
        x = features(400, 3)
        streamed = None
        for part in np.split(x + 1e8, 40):
            streamed = add(streamed, part)
        assert streamed is not None
        # Sums of squares would leave an error of 1e8 ** 2 * 1e-16 = 1, and float32 none of it.
        np.testing.assert_allclose(streamed.covariance, np.cov(x, rowvar=False), atol=1e-6)

    def test_float32_features_are_summed_in_float64(self):
        x = features(3000, 2).astype(np.float32)
        assert np.abs(statistics_of(x).mean - x.astype(np.float64).mean(axis=0)).max() < 1e-14

    def test_the_order_does_not_matter(self):
        a, b = statistics_of(features(9, 3, 1)), statistics_of(features(14, 3, 2))
        np.testing.assert_allclose(merge(a, b).covariance, merge(b, a).covariance, rtol=1e-12)

    def test_nothing_has_no_statistics(self):
        with pytest.raises(ValueError, match="no features"):
            statistics_of(np.zeros((0, 3)))

    def test_of_other_lengths_are_not_merged(self):
        with pytest.raises(ValueError, match="not from the same extractor"):
            merge(statistics_of(features(9, 3)), statistics_of(features(9, 4)))


class TestFrechet:
    def test_one_dimension(self):
        # (m_a - m_b)^2 + (s_a - s_b)^2
        assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([4.0], [[25.0]])) == pytest.approx(18.0, rel=1e-12)

    def test_commuting_covariances(self):
        q, rng = rotation(12, 0), np.random.default_rng(1)
        a, b = rng.uniform(0.1, 3.0, 12), rng.uniform(0.1, 3.0, 12)
        shift = rng.normal(size=12)
        found = frechet_distance(gaussian(0 * shift, q * a @ q.T), gaussian(shift, q * b @ q.T))
        assert found == pytest.approx(shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-11)

    def test_two_dimensions_that_do_not_commute(self):
        # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for a 2 x 2 matrix with eigenvalues that are not negative.
        a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
        root = np.sqrt(np.trace(a @ b) + 2.0 * np.sqrt(np.linalg.det(a @ b)))
        expected = 1.0 + 4.0 + np.trace(a) + np.trace(b) - 2.0 * root
        assert frechet_distance(gaussian([1.0, 0.0], a), gaussian([0.0, 2.0], b)) == pytest.approx(expected, rel=1e-12)

    def test_lines_at_an_angle(self):
        # Both of rank 1: tr sqrt(u u' v v') = |u.v|.
        rng = np.random.default_rng(0)
        u, v = rng.normal(size=200), rng.normal(size=200)
        found = frechet_distance(gaussian(np.zeros(200), np.outer(u, u)), gaussian(np.zeros(200), np.outer(v, v)))
        assert found == pytest.approx(u @ u + v @ v - 2.0 * abs(u @ v), rel=1e-11)

    def test_what_rounding_leaves_of_a_zero_has_no_root(self):
        # tr sqrt(u u') = |u|; the roots of 199 numbers around 1e-15 would be seen in the seventh digit.
        u = np.random.default_rng(0).normal(size=200)
        found = frechet_distance(gaussian(np.zeros(200), np.outer(u, u)), gaussian(np.zeros(200), np.eye(200)))
        assert found == pytest.approx(u @ u + 200.0 - 2.0 * np.linalg.norm(u), rel=1e-11)

    def test_a_distance_to_nothing_but_a_point(self):
        a = gaussian(np.ones(5), np.diag(np.arange(5.0)))
        assert frechet_distance(a, gaussian(np.zeros(5), np.zeros((5, 5)))) == pytest.approx(5.0 + 10.0, rel=1e-12)

    @given(st.integers(0, 1000), st.integers(3, 30))
    def test_properties(self, seed: int, count: int):
        width = 8  # some covariances are singular, some are not
        x, y = features(count, width, seed), features(20, width, seed + 1)
        a, b = statistics_of(x), statistics_of(y)
        found, size = frechet_distance(a, b), np.trace(a.covariance) + np.trace(b.covariance)
        assert found > 0.0
        assert frechet_distance(b, a) == pytest.approx(found, rel=1e-9)
        assert frechet_distance(a, a) <= 1e-12 * size
        moved = [statistics_of(z + 3.0) for z in (x, y)]
        assert frechet_distance(*moved) == pytest.approx(found, rel=1e-8)
        q = rotation(width, seed)
        assert frechet_distance(statistics_of(x @ q), statistics_of(y @ q)) == pytest.approx(found, rel=1e-8)
        assert frechet_distance(statistics_of(2 * x), statistics_of(2 * y)) == pytest.approx(4 * found, rel=1e-9)
        # One set moved alone: its distance from itself is that of the means.
        shift = frechet_distance(a, statistics_of(x + 3.0))
        assert shift == pytest.approx(9.0 * width, rel=1e-9, abs=1e-9 * size)

    def test_of_fewer_than_two_images_is_refused(self):
        with pytest.raises(BadInput, match=r"samples.*two images"):
            frechet_distance(statistics_of(features(9, 3)), statistics_of(features(1, 3)))

    def test_what_is_not_finite_is_refused(self):
        with pytest.raises(ValueError, match="not finite"):
            frechet_distance(gaussian([np.nan], [[1.0]]), gaussian([0.0], [[1.0]]))


def brute_mmd(real: np.ndarray, fake: np.ndarray) -> float:
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1.0) ** 3

    def within(x):
        return np.mean([kernel(a, b) for a, b in itertools.permutations(x, 2)])

    return within(real) + within(fake) - 2.0 * np.mean([kernel(a, b) for a in real for b in fake])


class TestKernel:
    def test_is_the_sum_over_pairs(self):
        real, fake = features(6, 4, 0), features(9, 4, 1)
        assert mmd(real, fake) == pytest.approx(brute_mmd(real, fake), rel=1e-11)

    def test_of_numbers_by_hand(self):
        # k(0, y) = 1, k(1, 1) = 8, k(1, -1) = 0.
        real, fake = np.array([[0.0], [0.0]]), np.array([[1.0], [-1.0]])
        assert mmd(real, fake) == pytest.approx(1.0 + 0.0 - 2.0)
        assert mmd(real, np.array([[1.0], [1.0]])) == pytest.approx(1.0 + 8.0 - 2.0)

    def test_is_unbiased(self):
        rng = np.random.default_rng(0)
        same = [mmd(rng.normal(size=(5, 3)), rng.normal(size=(5, 3))) for _ in range(2000)]
        error = np.std(same) / 2000**0.5
        assert abs(np.mean(same)) < 4 * error
        # A mean of 1 in d = 1. With s = x x' the kernel is 1 + 3 s + 3 s^2 + s^3, and the moments of x are 0, 1, 0 and,
        # moved, 1, 2, 4: real-real 1 + 0 + 3 + 0, fake-fake 1 + 3 + 12 + 16, real-fake 1 + 0 + 6 + 0.
        moved = [mmd(rng.normal(size=(5, 1)), rng.normal(size=(5, 1)) + 1.0) for _ in range(5000)]
        assert abs(np.mean(moved) - (4.0 + 32.0 - 2.0 * 7.0)) < 4 * np.std(moved) / 5000**0.5

    def test_over_subsets(self):
        real, fake = features(40, 3, 0), features(30, 3, 1)
        mean, std = kid(real, fake, subsets=200, subset_size=10)
        whole = mmd(real, fake)
        assert abs(mean - whole) < 4 * std / 200**0.5 + 0.05 * abs(whole)
        assert std > 0.0
        assert kid(real, fake, subsets=5, subset_size=10, seed=1) == kid(real, fake, subsets=5, subset_size=10, seed=1)
        assert kid(real, fake, subsets=5, subset_size=10, seed=1) != kid(real, fake, subsets=5, subset_size=10, seed=2)

    def test_the_only_subset_is_everything(self):
        real, fake = features(30, 3, 0), features(30, 3, 1)
        mean, std = kid(real, fake)
        assert mean == pytest.approx(mmd(real, fake), rel=1e-11)
        assert std == 0.0

    def test_too_few_are_refused(self):
        one, many = features(1, 3), features(9, 3)
        for real, fake in ((one, many), (many, one), (many[:0], many)):
            with pytest.raises(BadInput, match="samples"):
                kid(real, fake)
        with pytest.raises(BadInput, match="subsets"):
            kid(many, many, subsets=0)
