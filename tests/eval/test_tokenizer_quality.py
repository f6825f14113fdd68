"""How well a tokenizer does, where it is known; and what evaluators make of a network of latents."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from eval.fakes import Fake, blobs, context, noise, pixels
from known_tokenizers import Rearranged

from umd_eqx.core.errors import BadInput
from umd_eqx.eval import Denoising, FewShot, Generation, Reconstruction, TokenizerQuality
from umd_eqx.eval.base import decoded
from umd_eqx.eval.tokenizer_quality import codebook_use
from umd_eqx.models.tokenizers.fsq import FSQ
from umd_eqx.models.tokenizers.vae import VAEConfig
from umd_eqx.sampling import DDIM

KEY = jax.random.key(0)
TEST = noise(37)


class Halving(Rearranged):
    """Gives half of what it was given."""

    def decode_raw(self, z):
        return 0.5 * super().decode_raw(z)


def test_the_error_is_that_of_the_images_and_padding_is_not_counted():
    evaluate = TokenizerQuality(images=37, pictures=5).build(context(TEST, TEST))
    scalars, images = evaluate(Halving.init(), KEY)
    error = float(np.mean((0.5 * pixels(TEST)) ** 2))
    assert scalars["error"] == pytest.approx(error, rel=1e-5)
    assert scalars["psnr"] == pytest.approx(10 * math.log10(4 / error), rel=1e-5)
    assert scalars["latent_mean"] == pytest.approx(float(pixels(TEST).mean()), abs=1e-5)
    assert scalars["latent_std"] == pytest.approx(float(pixels(TEST).std()), rel=1e-4)
    assert "codes_used" not in scalars
    assert images["pictures"].shape == (2 * 10 - 2, 5 * 10 - 2, 3)


def test_codes_are_counted():
    fsq = FSQ.init(VAEConfig(channels=1, widths=(4, 4), layers=1, groups=2), (3, 2), key=KEY)
    scalars, _ = TokenizerQuality(images=20, pictures=1).build(context(TEST, TEST))(fsq, KEY)
    assert 1 / 6 <= scalars["codes_used"] <= 1
    assert 1 <= scalars["perplexity"] <= 6 + 1e-9


def test_perplexity_is_how_many_codes_used_equally_often_would_be_as_hard_to_guess():
    assert codebook_use(np.array([0, 1, 2, 3]), 8) == {"codes_used": 0.5, "perplexity": pytest.approx(4.0)}
    assert codebook_use(np.array([5, 5, 5]), 8) == {"codes_used": 0.125, "perplexity": pytest.approx(1.0)}
    two = codebook_use(np.array([0, 0, 0, 1]), 2)["perplexity"]
    assert two == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


@pytest.mark.parametrize(("name", "value"), [("images", 0), ("pictures", 0)])
def test_counts_below_one_are_refused(name, value):
    with pytest.raises(BadInput, match=f"eval.tokenizer.{name}: 0 is not valid"):
        TokenizerQuality(**{name: value}).validate()


def of_latents(tokenizer=None):
    """A context whose networks see 4 x 4 latents of 4 numbers, which are the images rearranged."""
    return dataclasses.replace(context(TEST, TEST), tokenizer=tokenizer or Rearranged.init())


LATENT = Fake(0.5, image_shape=(4, 4, 4), num_patches=16, patch=1)
PIXEL = Fake(0.5)


def test_a_reconstruction_error_of_latents_that_lose_nothing_is_that_of_pixels():
    # A patch of 2 x 2 pixels is one place of the latent, so that the same masks hide the same pixels.
    evaluator = Reconstruction(images=37, pictures=3)
    ours, pictures = evaluator.build(of_latents())(LATENT, KEY)
    theirs, expected = evaluator.build(context(TEST, TEST))(PIXEL, KEY)
    assert ours["error"] == pytest.approx(theirs["error"], rel=1e-5)
    assert ours["latent_error"] == pytest.approx(theirs["error"], rel=1e-5)
    assert "latent_error" not in theirs
    np.testing.assert_array_equal(pictures["pictures"], expected["pictures"])


def test_denoising_of_latents_is_measured_in_pixels_and_its_noise_in_latents():
    evaluator = Denoising(images=37, pictures=2, levels=(0.3, 0.6), shown_levels=(0.3,))
    scaled = Rearranged.init(scale=2.0, shift=0.25)
    ours, _ = evaluator.build(of_latents(scaled))(LATENT, KEY)
    # The network says half of 2 (x - 1/4) alpha + sigma eps: decoded, alpha (x - 1/4) / 2 + 1/4 and some noise.
    x = pixels(TEST)
    for level in (0.3, 0.6):
        alpha = np.cos(level * np.pi / 2)
        there = np.mean((0.5 * alpha * (x - 0.25) + 0.25 - x) ** 2) + (0.25 * np.sin(level * np.pi / 2)) ** 2
        assert ours[f"x0/t{level:.2f}"] == pytest.approx(float(there), rel=0.03)
        assert ours[f"eps/t{level:.2f}"] == pytest.approx(1.0, rel=0.1)


def test_the_probe_reads_the_latents_and_raw_pixels_are_pixels():
    train, test = blobs(80, 0), blobs(40, 1)
    evaluator = FewShot(shots=4, seeds=1, features=("class_tokens",))
    latents = dataclasses.replace(context(train, test), tokenizer=Rearranged.init())
    ours = evaluator.build(latents)(LATENT, KEY).scalars
    theirs = evaluator.build(context(train, test))(PIXEL, KEY).scalars
    # The same numbers in another order: nothing that a probe could notice.
    assert ours == pytest.approx(theirs)


def test_samples_are_decoded_before_they_are_compared():
    sampler = DDIM(steps=2, clip=False)
    evaluator = Generation(samples=20, sampler=sampler, columns=1, frames=2, extractor="fashion", batch_size=8)
    ours = evaluator.build(of_latents())(LATENT, KEY)
    shown = {name: image.shape for name, image in ours.images.items()}
    assert shown["cfg1"] == (4 * 10 - 2, 8, 3)
    assert shown["trajectories"][0] == 4 * 10 - 2
    assert all(np.isfinite(value) for value in ours.scalars.values())


def test_samples_of_latents_are_not_clipped_by_a_sampler_that_clips_pixels():
    # Latents four times as large as pixels: clipped at 1 they would be images within a quarter of the range.
    def measured(network, where, clip):
        sampler = DDIM(steps=2, clip=clip)
        options = {"columns": 1, "frames": 2, "extractor": "fashion", "batch_size": 8}
        return Generation(samples=20, sampler=sampler, **options).build(where)(network, KEY)

    latents = of_latents(Rearranged.init(scale=4.0))
    usual, unclipped = (measured(LATENT, latents, clip) for clip in (True, False))
    assert usual.scalars == unclipped.scalars
    np.testing.assert_array_equal(usual.images["trajectories"], unclipped.images["trajectories"])
    # In pixels the same flag changes the samples.
    usual, unclipped = (measured(PIXEL, context(TEST, TEST), clip) for clip in (True, False))
    assert usual.scalars != unclipped.scalars


def test_latents_are_decoded_in_batches_of_any_size():
    tokenizer = Rearranged.init(shift=0.5, scale=3.0)
    images = np.asarray(pixels(TEST), np.float32)
    latents = np.asarray(jax.vmap(lambda x: tokenizer.encode(x).mode())(images))
    for size in (1, 8, 64):
        parts = list(decoded(tokenizer, latents, size, of_latents().mesh))
        np.testing.assert_allclose(np.concatenate(parts), images, atol=1e-5)
        assert max(map(len, parts)) <= max(size, 8)
