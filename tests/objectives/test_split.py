import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_terms import BATCH, DRAW, FIXED, PATH, Echo, loss_of

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import micro_batches
from umd_eqx.core.types import NO_CLASS
from umd_eqx.objectives import Unified, masked_denoising, masked_reconstruction, unified
from umd_eqx.objectives.base import split_by_period


def test_the_split_by_hand():
    # 6 images, 2 of them clean: 2 rows of 3, of which the last is clean.
    first, second = split_by_period(jnp.arange(6), 4, 2)
    np.testing.assert_array_equal(first, [[0, 1], [3, 4]])
    np.testing.assert_array_equal(second, [[2], [5]])


@pytest.mark.parametrize(
    ("batch_size", "share", "clean", "period"),
    [(1024, 0.5, 512, 2), (256, 0.05, 12, 64), (8, 0.0, 0, 1), (8, 1.0, 8, 1), (10, 0.25, 2, 5), (7, 0.5, 3, 7)],
)
def test_counts_and_periods(batch_size, share, clean, period):
    objective = unified(no_noise_prob=share)
    assert objective.num_clean(batch_size) == clean
    assert objective.period(batch_size) == period


@pytest.mark.parametrize(("first", "second"), [(4, 2), (244, 12), (3, 4), (512, 512), (5, 0), (0, 5), (7, 1)])
def test_every_image_is_in_one_part_and_all_periods_are_alike(first, second):
    whole = np.arange(first + second)
    a, b = (np.asarray(part).reshape(-1) for part in split_by_period(jnp.asarray(whole), first, second))
    assert (len(a), len(b)) == (first, second)
    np.testing.assert_array_equal(np.sort(np.concatenate([a, b])), whole)
    assert np.all(np.diff(a) > 0)
    assert np.all(np.diff(b) > 0)
    period = (first + second) // (math.gcd(first + second, second) or 1)
    is_second = np.isin(whole, b).reshape(-1, period)
    np.testing.assert_array_equal(is_second, np.broadcast_to(is_second[0], is_second.shape))
    np.testing.assert_array_equal(is_second[0], np.sort(is_second[0]))  # the last of each


@given(st.integers(2, 600), st.integers(0, 100).map(lambda percent: percent / 100))
@example(300, 0.29)  # 300 * 0.29 is 87 in floats, but 100 * 0.29 is just below 29
@example(150, 0.58)
def test_a_micro_batch_has_its_share_of_clean_images(batch_size, share):
    objective = unified(no_noise_prob=share)
    clean, periods = objective.num_clean(batch_size), batch_size // objective.period(batch_size)
    for pieces in range(1, periods + 1):
        if periods % pieces == 0:
            assert objective.num_clean(batch_size // pieces) * pieces == clean


@pytest.mark.parametrize("share", [0.25, 0.5, 0.0, 1.0])
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_micro_batches(share):
    objective = unified(no_noise_prob=share)
    whole = loss_of(objective, FIXED)[0]
    pieces = micro_batches((BATCH, DRAW), 2, objective.period(8))
    parts = [loss_of(objective, FIXED, PATH, *jax.tree.map(lambda leaf, i=i: leaf[i], pieces))[0] for i in range(2)]
    assert float(parts[0]) != pytest.approx(float(parts[1]))
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_the_parts_are_weighted_by_their_images():
    blank = jax.tree.map(jnp.zeros_like, BATCH)
    silent = jax.tree.map(jnp.zeros_like, DRAW)
    objective = Unified(masked_denoising(), masked_reconstruction(), no_noise_prob=0.25)
    # The labels of the blank batch are 0: only the clean images err, which are told NO_CLASS, by its square.
    loss, metrics = loss_of(objective, Echo("label"), PATH, blank, silent)
    assert float(metrics["denoising/loss"]) == 0
    assert float(metrics["reconstruction/loss"]) == pytest.approx(NO_CLASS**2)
    assert float(loss) == pytest.approx(NO_CLASS**2 * 2 / 8)


def test_a_network_has_to_suit_the_parts_that_have_images(random_model):
    model = random_model(8, prediction="v")
    unified(no_noise_prob=0.0).require_suitable(model, PATH)
    with pytest.raises(BadInput, match=r"^model\.prediction: v cannot be learned on images without noise"):
        unified().require_suitable(model, PATH)
    unified().require_suitable(random_model(8, prediction="x0"), PATH)


@pytest.mark.parametrize(("share", "name"), [(0.0, "denoising"), (1.0, "reconstruction")])
def test_at_its_ends_the_unified_loss_is_one_part_alone(share, name):
    objective = unified(no_noise_prob=share)
    alone, terms = loss_of(getattr(objective, name), FIXED)
    loss, metrics = loss_of(objective, FIXED)
    assert float(loss) == float(alone)
    assert metrics.keys() == {f"{name}/loss", *(f"{name}/{term}" for term in terms)}
