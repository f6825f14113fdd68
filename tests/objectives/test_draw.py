import jax
import numpy as np
import pytest

from umd_eqx.core.paths import CosineTable, RectifiedFlow
from umd_eqx.objectives import draw_noised

B, SHAPE, N, TABLE = 64, (4, 4, 2), 9, CosineTable()


@pytest.fixture(scope="module")
def fresh():
    """`fresh(seed, path, label_dropout)`."""
    return lambda seed=0, path=TABLE, rate=0.1: draw_noised(jax.random.key(seed), path, (B, *SHAPE), N, rate)


def test_a_draw_has_an_entry_for_each_image(fresh):
    numbers = fresh()
    assert (numbers.t.shape, numbers.eps.shape) == ((B,), (B, *SHAPE))
    assert (numbers.order.shape, numbers.drop_label.shape) == ((B, N), (B,))
    np.testing.assert_array_equal(np.sort(numbers.order, axis=1), np.broadcast_to(np.arange(N), (B, N)))


def test_a_draw_follows_from_its_key_alone(fresh):
    first, again, other = jax.tree.leaves(fresh(7)), jax.tree.leaves(fresh(7)), jax.tree.leaves(fresh(8))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(np.asarray(a) != np.asarray(c))


def test_no_two_images_share_their_randomness(fresh):
    numbers = fresh()
    assert len(np.unique(np.asarray(numbers.eps).reshape(B, -1), axis=0)) == B
    assert len(np.unique(np.asarray(numbers.order), axis=0)) > B - 3
    assert len(np.unique(np.asarray(numbers.t))) > B / 2


def test_noise_is_standard_normal_and_times_are_the_paths(fresh):
    numbers = fresh()
    eps = np.asarray(numbers.eps)
    assert abs(eps.mean()) < 4 / eps.size**0.5
    assert eps.std() == pytest.approx(1, abs=4 / (2 * eps.size) ** 0.5)
    np.testing.assert_allclose(numbers.t * 1000, np.round(numbers.t * 1000), rtol=1e-6)
    smooth = np.asarray(fresh(path=RectifiedFlow()).t)
    assert np.any(np.abs(smooth * 1000 - np.round(smooth * 1000)) > 0.1)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_labels_are_dropped_at_their_rate(rate):
    # One pixel, so that there can be many images.
    dropped = np.asarray(draw_noised(jax.random.key(0), TABLE, (4000, 1, 1, 1), 1, rate).drop_label)
    assert dropped.mean() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 4000) ** 0.5)
