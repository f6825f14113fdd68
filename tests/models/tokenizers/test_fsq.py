"""Finite scalar quantisation: a grid, numbered, with gradients that go straight through (arXiv 2309.15505)."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umd_eqx.models.tokenizers.fsq import FSQ, bounded, code_of, indices, nearest, quantised
from umd_eqx.models.tokenizers.vae import VAEConfig

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)
MU = VAEConfig(channels=1, widths=(8, 8), layers=1, groups=2)


def grid(levels: tuple[int, ...]) -> set[tuple[float, ...]]:
    """Every code, by the paper's definition: whole numbers over half of the levels, rounded down."""
    axes = [[k / (count // 2) for k in range(-(count // 2), (count + 1) // 2)] for count in levels]
    return set(itertools.product(*axes))


@given(LEVELS, st.integers(0, 2**32 - 1))
def test_whatever_comes_out_of_the_encoder_becomes_a_code(levels, seed):
    z = np.random.default_rng(seed).normal(0, 3, (50, len(levels))).astype(np.float32)
    codes = np.asarray(quantised(jnp.asarray(z), levels), np.float64)
    assert {tuple(row) for row in codes.round(5).tolist()} <= {
        tuple(np.round(code, 5).tolist()) for code in grid(levels)
    }


@given(LEVELS)
def test_every_code_has_a_number_of_its_own(levels):
    number = jnp.arange(math.prod(levels))
    codes = code_of(number, levels)
    np.testing.assert_array_equal(indices(codes, levels), number)
    assert len({tuple(row) for row in np.asarray(codes).tolist()}) == math.prod(levels) == len(grid(levels))


@given(LEVELS, st.integers(0, 2**32 - 1))
def test_the_nearest_code_is_the_nearest(levels, seed):
    z = np.random.default_rng(seed).uniform(-1.5, 1.5, (20, len(levels))).astype(np.float32)
    every = np.asarray(code_of(jnp.arange(math.prod(levels)), levels))
    expected = every[np.argmin(((z[:, None] - every) ** 2).sum(axis=-1), axis=1)]
    found = np.asarray(nearest(jnp.asarray(z), levels))
    np.testing.assert_allclose(((found - z) ** 2).sum(axis=1), ((expected - z) ** 2).sum(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(nearest(jnp.asarray(found), levels), found)


def test_every_level_is_reached_and_none_beyond():
    for count in range(2, 10):
        z = jnp.linspace(-20, 20, 4001)[:, None]
        assert len(np.unique(np.round(bounded(z, (count,))))) == count
    np.testing.assert_array_equal(quantised(jnp.zeros(2), (5, 8)), jnp.zeros(2))


def test_gradients_go_straight_through():
    levels, z = (8, 5), jnp.array([0.3, -0.7])
    straight = jax.grad(lambda z: jnp.sum(quantised(z, levels)))(z)
    smooth = jax.grad(lambda z: jnp.sum(bounded(z, levels) / jnp.array([4.0, 2.0])))(z)
    np.testing.assert_allclose(straight, smooth, rtol=1e-6)
    assert float(jnp.abs(straight).min()) > 0.1


@pytest.fixture(scope="module")
def tokenizer():
    return FSQ.init(MU, (4, 3), key=jax.random.key(0))


def test_a_latent_is_a_code_at_each_place(tokenizer):
    image = jax.random.uniform(jax.random.key(1), (6, 8, 1), minval=-1.0)
    posterior = tokenizer.encode_raw(image)
    assert posterior.logvar is None
    assert posterior.mean.shape == (3, 4, 2)
    numbers = tokenizer.indices(posterior.mean)
    assert numbers.shape == (3, 4)
    assert 0 <= int(numbers.min()) <= int(numbers.max()) < tokenizer.codebook_size == 12
    np.testing.assert_allclose(code_of(numbers, (4, 3)), posterior.mean, atol=1e-6)


def test_what_a_network_generates_is_decoded_as_the_nearest_code(tokenizer):
    z = jax.random.normal(jax.random.key(2), (3, 3, 2))
    np.testing.assert_array_equal(tokenizer.decode_raw(z), tokenizer.decode_raw(nearest(z, (4, 3))))
