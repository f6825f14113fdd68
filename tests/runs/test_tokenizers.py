"""Tokenizers from wherever they lie, and what a configuration is told of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs.tiny_tokenizers import DIFFUSERS, FSQ, KL, made
from runs.tiny_tokenizers import saved as saved

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import LatentSpec, same_tokenizer
from umd_eqx.data.source import open_source
from umd_eqx.eval.averages import mean_over_images
from umd_eqx.models.tokenizers.base import with_statistics
from umd_eqx.models.tokenizers.diffusers_vae import write_diffusers
from umd_eqx.models.tokenizers.files import latent_moments, mean_and_deviation
from umd_eqx.models.tokenizers.vae import AutoencoderKL
from umd_eqx.recipes.build import build
from umd_eqx.recipes.pretrain import latent_umd, umd
from umd_eqx.runs.resolved import resolve
from umd_eqx.runs.tokenizers import SHIPPED, fingerprint, load_tokenizer, save_tokenizer


@pytest.mark.parametrize("config", [KL, FSQ])
@pytest.mark.parametrize("half", [False, True])
def test_what_was_saved_is_loaded(tmp_path, config, half):
    tokenizer = with_statistics(made(config), -0.5, 1.25)
    save_tokenizer(tokenizer, config, tmp_path / "t.safetensors", {"step": 3}, half=half)
    loaded = load_tokenizer(str(tmp_path / "t.safetensors"))
    assert jax.tree.structure(loaded.tokenizer) == jax.tree.structure(tokenizer)
    for ours, theirs in zip(jax.tree.leaves(loaded.tokenizer), jax.tree.leaves(tokenizer), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3 if half else 0, atol=1e-6 if half else 0)
    assert (loaded.config, loaded.facts) == (config, {"step": 3})
    assert loaded.digest == fingerprint(loaded.tokenizer)
    assert (loaded.digest == fingerprint(tokenizer)) != half
    assert loaded.spec == LatentSpec(2, 2, loaded.digest)


def test_a_run_is_named_by_its_directory_and_diffusers_by_its_folder(saved, tmp_path):
    assert load_tokenizer(str(saved)).digest == load_tokenizer(str(saved / "tokenizer.safetensors")).digest
    write_diffusers(AutoencoderKL.init(DIFFUSERS, key=jax.random.key(0)), DIFFUSERS, tmp_path / "vae")
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.spec == LatentSpec(2, 3, loaded.digest)
    assert (loaded.tokenizer.shift, loaded.tokenizer.scale) == (0.5, 2.0)
    assert loaded.config is None


@pytest.mark.parametrize("name", SHIPPED)
def test_what_comes_with_the_package_is_small_and_gives_images_back(name):
    loaded = load_tokenizer(name)
    assert SHIPPED[name].stat().st_size < 2e6
    assert loaded.spec == LatentSpec(4, 4, loaded.digest)
    source = open_source("fashion_mnist", None, "test[:64]")
    images = np.stack([source[i]["image"] for i in range(64)]).astype(np.float32) / 127.5 - 1
    latents = jax.vmap(lambda x: loaded.tokenizer.encode(x).mode())(images)
    back = jax.vmap(loaded.tokenizer.decode)(latents)
    # By its card: a decibel above what the run itself measured of all test images.
    assert float(np.mean((np.asarray(back) - images) ** 2)) < 0.02
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)
    assert float(latents.mean()) == pytest.approx(0.0, abs=0.1)


def test_the_fingerprint_is_of_weights_shift_and_scale():
    tokenizer = made(KL)
    others = [with_statistics(tokenizer, 0.1, 1.0), with_statistics(tokenizer, 0.0, 1.1)]
    changed = jax.tree.map(lambda leaf: leaf.at[..., 0].add(1e-3), tokenizer)
    assert len({fingerprint(t) for t in [tokenizer, *others, changed]}) == 4
    assert fingerprint(tokenizer) == fingerprint(made(KL))


def test_the_fingerprint_is_of_every_setting_too():
    # The same weights, other codes.
    codes, other = made(FSQ), made(dataclasses.replace(FSQ, levels=(4, 3)))
    assert all(map(jnp.array_equal, jax.tree.leaves(codes), jax.tree.leaves(other)))
    assert fingerprint(codes) != fingerprint(other)
    assert fingerprint(made(KL)) != fingerprint(made(dataclasses.replace(KL, groups=4)))
    norm = dataclasses.replace(codes.decoder.norm, groups=1)
    others = [dataclasses.replace(codes, factor=4), dataclasses.replace(codes, channels=3)]
    others += [dataclasses.replace(codes, decoder=dataclasses.replace(codes.decoder, norm=norm))]
    assert len({fingerprint(t) for t in [codes, *others]}) == 4
    assert fingerprint(made(FSQ)) == fingerprint(made(FSQ))


@pytest.mark.parametrize(("name", "former"), [("fashion-kl", "8ea01e6f13f91b0e"), ("fashion-fsq", "cc6cfb6e0924d965")])
def test_a_fingerprint_without_the_settings_is_still_known(name, former):
    digest = load_tokenizer(name).digest
    assert len(digest) == 32
    assert same_tokenizer(digest, former)
    assert same_tokenizer(former, digest)
    assert same_tokenizer(None, None)
    for other in (None, "", former[:15], "0" * 16, former + "0" * 16, 3):
        assert not same_tokenizer(digest, other)


def test_statistics_are_those_of_latents_as_they_are_drawn():
    # An encoder whose last layer says nothing but its bias: mean 0.7, variance exp(-1) for every number.
    tokenizer = made(KL)
    quiet = jax.tree.map(jnp.zeros_like, tokenizer.encoder.last)
    quiet = dataclasses.replace(quiet, bias=jnp.array([0.5, 0.9, -1.0, -1.0]))
    conv = dataclasses.replace(tokenizer.quant_conv, kernel=jnp.eye(4)[None, None], bias=jnp.zeros(4))
    encoder = dataclasses.replace(tokenizer.encoder, last=quiet)
    tokenizer = dataclasses.replace(tokenizer, encoder=encoder, quant_conv=conv)
    source = open_source("fashion_mnist", None, "test[:20]")
    mean, std = mean_and_deviation(mean_over_images(latent_moments, tokenizer, source, 28, batch_size=8))
    assert mean == pytest.approx(0.7, abs=1e-5)
    assert std == pytest.approx(np.sqrt(0.04 + np.exp(-1)), rel=1e-5)


def test_a_configuration_is_told_what_its_tokenizer_makes(saved):
    config = dataclasses.replace(latent_umd(), tokenizer=str(saved), latent=None)
    found = resolve(config).config
    assert found.latent == LatentSpec(2, 2, load_tokenizer(str(saved)).digest)
    assert found.side == 14
    built = build(found, found.data.describe())
    assert built.abstract_state().model.image_shape == (14, 14, 2)
    assert resolve(umd()).config == umd()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {"latents": "somewhere"}, "tokenizer": None},
            "data.latents: a system that is trained on pixels cannot use latents",
        ),
        ({"data": {"size": 30}}, "data.size: 30 is not a multiple of the tokenizer's downsampling factor, 4"),
        ({"latent": None}, "tokenizer: fashion-kl has not been resolved"),
        ({"model": {"variant": "mu/2"}}, "model.variant: a patch size of 2 does not divide an image of 7 x 7"),
    ],
)
def test_configurations_that_cannot_work(change, message):
    config = latent_umd()
    for name, value in change.items():
        inner = dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        config = dataclasses.replace(config, **{name: inner})
    with pytest.raises(BadInput, match=message):
        build(config, config.data.expected)
