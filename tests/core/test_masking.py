import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umd_eqx.core.masking import (
    View,
    draw_order,
    hidden_patches,
    hidden_pixels,
    hide,
    num_kept,
    patchify,
    restore,
    unpatchify,
)

N, D = 12, 3
HAND_MADE = View(jnp.asarray([3, 0, 2, 1]), kept=1)  # of 2 x 2 patches only the last is visible


def random_view(seed: int, kept: int, n: int = N) -> View:
    return View(jnp.asarray(np.random.default_rng(seed).permutation(n)), kept)


views = st.builds(random_view, st.integers(0, 2**31), st.integers(0, N))


@given(views)
def test_hide_then_restore_keeps_what_is_visible_and_masks_the_rest(view):
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
    mask_token = jnp.asarray([7.0, 8.0, 9.0])
    hidden = np.asarray(hidden_patches(view), bool)
    restored = np.asarray(restore(hide(tokens, view), mask_token, view))
    np.testing.assert_array_equal(restored[~hidden], np.asarray(tokens)[~hidden])
    np.testing.assert_array_equal(restored[hidden], np.broadcast_to(mask_token, (N - view.kept, D)))


@given(views)
def test_visible_and_hidden_patches_are_all_patches(view):
    visible = np.asarray(hide(jnp.arange(N, dtype=jnp.float32)[:, None], view))[:, 0]
    hidden = np.flatnonzero(hidden_patches(view))
    assert sorted([*visible, *hidden]) == list(range(N))
    assert len(visible) == view.kept


def test_visible_tokens_come_in_the_order_of_the_view():
    view = View(jnp.asarray([2, 0, 3, 1]), kept=3)
    np.testing.assert_array_equal(hide(jnp.asarray([[0.0], [10.0], [20.0], [30.0]]), view)[:, 0], [20, 0, 30])


def test_restore_computes_in_the_dtype_of_the_tokens():
    visible = jnp.ones((1, D), jnp.bfloat16)
    assert restore(visible, jnp.ones(D), HAND_MADE).dtype == jnp.bfloat16


def test_hidden_pixels_of_a_mask_made_by_hand():
    view = View(jnp.asarray([1, 4, 0, 2, 3, 5]), kept=2)  # 2 rows of 3 patches, the middle column visible
    mask = hidden_pixels(view, jnp.zeros((4, 6, 3)), patch=2)
    row = [1, 1, 0, 0, 1, 1]
    np.testing.assert_array_equal(mask, np.asarray([row] * 4)[..., None])
    np.testing.assert_array_equal(
        hidden_pixels(HAND_MADE, jnp.zeros((2, 2, 1)), patch=1)[..., 0], np.asarray([[1, 1], [1, 0]])
    )


def test_patches_are_in_raster_order_and_flattened_as_row_column_channel():
    h, w, c = 4, 6, 2
    image = jnp.arange(h * w * c, dtype=jnp.float32).reshape(h, w, c)
    patches = patchify(image, 2)
    assert patches.shape == (6, 8)
    np.testing.assert_array_equal(patches[1], [4, 5, 6, 7, 16, 17, 18, 19])  # rows 0-1, columns 2-3
    np.testing.assert_array_equal(patches[3], [24, 25, 26, 27, 36, 37, 38, 39])  # rows 2-3, columns 0-1


@pytest.mark.parametrize(("shape", "patch"), [((4, 6, 2), 2), ((8, 8, 3), 4), ((3, 3, 1), 1), ((6, 3, 5), 3)])
def test_unpatchify_undoes_patchify(shape, patch):
    image = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    np.testing.assert_array_equal(unpatchify(patchify(image, patch), patch, *shape[:2]), image)


@pytest.mark.parametrize(
    ("n", "ratio", "kept"),
    [(256, 0.75, 64), (256, 0.375, 160), (16, 0.375, 10), (49, 0.75, 12), (256, 0.0, 256), (10, 0.55, 4), (4, 1.0, 0)],
)
def test_num_kept_is_rounded_down(n, ratio, kept):
    assert num_kept(n, ratio) == kept


def test_orders_are_permutations_and_uniform():
    draws = 4000
    orders = np.asarray(jax.jit(jax.vmap(lambda key: draw_order(key, 6)))(jax.random.split(jax.random.key(0), draws)))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.broadcast_to(np.arange(6), orders.shape))
    # Every patch as often in every place; and every pair as often in the first two, which a biased swap would break.
    counts = np.stack([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    pairs = np.bincount(orders[:, 0] * 6 + orders[:, 1], minlength=36).reshape(6, 6)[~np.eye(6, dtype=bool)]
    for observed, freedom in ((counts, 25), (pairs, 29)):
        expected = observed.sum() / observed.size
        chi_square = np.sum((observed - expected) ** 2) / expected
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5
