"""The parts of the Stable Diffusion VAE against their formulas; its sizes. test_vae_torch.py has its numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.models.base import num_parameters
from umd_eqx.models.tokenizers.configs import FSQTokenizer, KLTokenizer
from umd_eqx.models.tokenizers.vae import FLUX, SD_V1, SD_V3, AutoencoderKL, VAEConfig
from umd_eqx.models.tokenizers.vae_layers import Conv, GroupNorm, SpatialAttention, upsample

MU = VAEConfig(widths=(8, 16), layers=1, groups=4)


@pytest.mark.parametrize(("config", "parameters"), [(SD_V1, 83_653_863), (SD_V3, 83_819_683), (FLUX, 83_819_683)])
def test_the_published_sizes_have_the_published_number_of_parameters(config, parameters):
    like = jax.eval_shape(lambda key: AutoencoderKL.init(config, key=key), jax.random.key(0))
    assert num_parameters(like) == parameters
    image = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
    posterior = jax.eval_shape(lambda tokenizer, x: tokenizer.encode(x), like, image)
    assert posterior.mean.shape == posterior.logvar.shape == (32, 32, config.latent_channels)
    assert jax.eval_shape(lambda tokenizer, z: tokenizer.decode(z), like, posterior.mean).shape == (256, 256, 3)


@pytest.mark.parametrize("config", [KLTokenizer(), FSQTokenizer()])
def test_the_small_ones_fit_into_two_megabytes_at_half_precision(config):
    like = jax.eval_shape(lambda key: config.build(28, 1, 10, key=key), jax.random.key(0))
    assert 2 * num_parameters(like) < 2e6
    assert like.factor == 4


def test_group_norm_is_its_formula():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(5, 3, 12)) * rng.uniform(0.1, 3, 12) + rng.normal(size=12)).astype(np.float32)
    norm = GroupNorm(jnp.asarray(rng.normal(size=12), jnp.float32), jnp.asarray(rng.normal(size=12), jnp.float32), 4)
    groups = x.astype(np.float64).reshape(15, 4, 3)
    mean, variance = groups.mean(axis=(0, 2), keepdims=True), groups.var(axis=(0, 2), keepdims=True)
    normal = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(5, 3, 12)
    np.testing.assert_allclose(norm(jnp.asarray(x)), normal * np.asarray(norm.scale) + np.asarray(norm.bias), atol=1e-5)


def test_halving_pads_below_and_to_the_right():
    conv = Conv.init(1, 1, key=jax.random.key(0), stride=2)
    x = np.arange(16.0, dtype=np.float32).reshape(4, 4, 1)
    padded = np.pad(x[..., 0], ((0, 1), (0, 1)))
    kernel = np.asarray(conv.kernel)[..., 0, 0]
    expected = [[np.sum(padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * kernel) for j in range(2)] for i in range(2)]
    np.testing.assert_allclose(conv(jnp.asarray(x))[..., 0], expected, rtol=1e-5)


def test_doubling_makes_a_square_of_every_pixel():
    x = jnp.arange(6.0).reshape(2, 3, 1)
    np.testing.assert_array_equal(upsample(x)[..., 0], np.kron(np.arange(6.0).reshape(2, 3), np.ones((2, 2))))


def test_attention_is_its_formula():
    attention = SpatialAttention.init(8, 2, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    rows = np.asarray(attention.norm(x), np.float64).reshape(6, 8)
    q, k, v = (rows @ np.asarray(layer.kernel) for layer in (attention.query, attention.key, attention.value))
    scores = np.exp(q @ k.T / np.sqrt(8))
    mixed = scores / scores.sum(axis=1, keepdims=True) @ v @ np.asarray(attention.out.kernel)
    np.testing.assert_allclose(attention(x), np.asarray(x) + mixed.reshape(2, 3, 8), atol=1e-5)


def test_sides_that_cannot_be_halved_are_refused():
    tokenizer = AutoencoderKL.init(MU, key=jax.random.key(0))
    with pytest.raises(ValueError, match="an image of 7 x 8 are not divisible by 2"):
        tokenizer.encode(jnp.zeros((7, 8, 3)))


def test_half_precision_gives_float32_that_is_nearly_the_same():
    single = AutoencoderKL.init(MU, key=jax.random.key(0))
    half = dataclasses.replace(single, dtype="bfloat16")
    image = jax.random.uniform(jax.random.key(1), (8, 8, 3), minval=-1.0)
    theirs = single.encode_raw(image).mean
    with jax.numpy_dtype_promotion("standard"):  # for jax's own attention
        ours = half.encode_raw(image).mean
        assert ours.dtype == half.decode_raw(ours).dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, atol=0.05 * float(jnp.abs(theirs).max()))
    assert float(jnp.abs(ours - theirs).max()) > 0


def test_the_logarithm_of_the_variance_is_clipped_as_published():
    tokenizer = AutoencoderKL.init(dataclasses.replace(MU, quant_conv=False), key=jax.random.key(0))
    bias = tokenizer.encoder.last.bias.at[4:].set(jnp.array([-100.0, 100.0, 0.0, 0.0]))
    encoder = dataclasses.replace(tokenizer.encoder, last=dataclasses.replace(tokenizer.encoder.last, bias=bias))
    logvar = dataclasses.replace(tokenizer, encoder=encoder).encode_raw(jnp.zeros((4, 4, 3))).logvar
    assert set(np.asarray(logvar[..., 0]).ravel()) == {-30.0}
    assert set(np.asarray(logvar[..., 1]).ravel()) == {20.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VAEConfig(widths=(8, 12), groups=8), "model.groups: 8 groups do not divide the widths 8, 12"),
        (VAEConfig(groups=0), "model.groups: 0 groups do not divide the widths 128, 256, 512, 512"),
        (VAEConfig(widths=()), "model.widths: no widths are given"),
        (VAEConfig(latent_channels=0), "model.latent_channels: 0 is too small"),
    ],
)
def test_sizes_that_cannot_work(config, message):
    with pytest.raises(BadInput, match=message):
        AutoencoderKL.init(config, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (KLTokenizer(), 30, "model.widths: images of 30 x 30 cannot be downsampled by a factor of 4"),
        (FSQTokenizer(levels=(8, 1)), 28, "model.levels: "),
        (FSQTokenizer(groups=7), 28, "model.groups: 7 groups do not divide"),
    ],
)
def test_recipes_that_cannot_work(config, size, message):
    with pytest.raises(BadInput, match=message):
        config.validate(size)
