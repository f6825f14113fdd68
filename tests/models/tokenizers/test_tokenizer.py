"""What a tokenizer says of an image, and how a network is given it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_tokenizers import Rearranged

from umd_eqx.models.tokenizers.base import Identity, Posterior

SHAPE = (2, 3, 4)
MEAN = jax.random.normal(jax.random.key(0), SHAPE)
LOGVAR = jax.random.normal(jax.random.key(1), SHAPE)


def test_samples_have_the_mean_and_the_variance_of_the_posterior():
    draws = jax.vmap(Posterior(MEAN, LOGVAR).sample)(jax.random.split(jax.random.key(2), 20_000))
    np.testing.assert_allclose(draws.mean(axis=0), MEAN, atol=0.05)
    np.testing.assert_allclose(jnp.log(draws.var(axis=0)), LOGVAR, atol=0.05)


def test_the_divergence_is_what_samples_say():
    # E[log q - log p], and 0 for the prior itself.
    posterior = Posterior(MEAN, LOGVAR)
    z = jax.vmap(posterior.sample)(jax.random.split(jax.random.key(3), 20_000))
    log_q = -0.5 * ((z - MEAN) ** 2 / jnp.exp(LOGVAR) + LOGVAR)
    there = jnp.mean(jnp.sum(log_q + 0.5 * z**2, axis=(1, 2, 3)))
    assert float(posterior.kl()) == pytest.approx(float(there), rel=0.01)
    assert float(Posterior(jnp.zeros(SHAPE), jnp.zeros(SHAPE)).kl()) == 0.0


def test_a_point_is_its_own_sample_and_mode():
    point = Posterior(MEAN)
    np.testing.assert_array_equal(point.sample(jax.random.key(0)), MEAN)
    np.testing.assert_array_equal(point.mode(), MEAN)
    assert float(point.kl()) == 0.0


@given(st.floats(-2, 2), st.floats(0.1, 8))
def test_what_a_network_is_given_is_shifted_and_scaled_and_decoded_back(shift, scale):
    tokenizer = Rearranged.init(shift=shift, scale=scale, logvar=-1.0)
    image = jax.random.uniform(jax.random.key(4), (4, 6, 1), minval=-1.0)
    raw, given = tokenizer.encode_raw(image), tokenizer.encode(image)
    np.testing.assert_allclose(given.mean, (raw.mean - shift) * scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(given.logvar, raw.logvar + 2 * np.log(scale), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tokenizer.decode(given.mean), image, atol=1e-5)
    # The same noise gives the same latent on either scale.
    key = jax.random.key(5)
    np.testing.assert_allclose(given.sample(key), (raw.sample(key) - shift) * scale, rtol=1e-4, atol=1e-4)


def test_pixels_are_their_own_latents():
    tokenizer = Identity.init(3)
    image = jax.random.normal(jax.random.key(0), (5, 7, 3))
    np.testing.assert_array_equal(tokenizer.encode(image).sample(jax.random.key(1)), image)
    np.testing.assert_array_equal(tokenizer.decode(image), image)
    assert (tokenizer.factor, tokenizer.latent_channels) == (1, 3)
