"""What a tokenizer is trained for, where its answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_tokenizers import Rearranged

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import Clean
from umd_eqx.core.types import Batch
from umd_eqx.models.extractors.fashion import load_fashion_classifier
from umd_eqx.objectives import Tokenizing

PATH = Clean()
IMAGES = jax.random.uniform(jax.random.key(0), (6, 28, 28, 1), minval=-1.0)
BATCH = Batch(IMAGES, jnp.zeros(6, jnp.int32), jnp.ones(6, bool))


def loss_of(objective: Tokenizing, tokenizer: Rearranged, batch: Batch = BATCH):
    return objective(tokenizer, PATH, batch, jax.random.key(1))


def test_what_is_given_back_as_it_was_costs_nothing():
    loss, terms = loss_of(Tokenizing(kl_weight=0.0), Rearranged.init())
    assert float(loss) == pytest.approx(0.0, abs=1e-12)
    assert terms.keys() == {"reconstruction", "kl"}
    assert float(terms["kl"]) == 0.0


def test_the_error_is_the_variance_of_what_is_drawn():
    # The decoder undoes the encoder, so that nothing but the noise of the latent is left, times its gain.
    loss, terms = loss_of(Tokenizing(kl_weight=0.0), Rearranged.init(logvar=float(np.log(0.04)), gain=2.0))
    assert float(terms["reconstruction"]) == pytest.approx(0.04 / 4, rel=0.05)
    assert float(loss) == pytest.approx(float(terms["reconstruction"]))


def test_the_divergence_is_that_of_a_gaussian_for_each_number_of_the_latent():
    variance = 0.25
    tokenizer = Rearranged.init(logvar=float(np.log(variance)))
    expected = 0.5 * (float(jnp.mean(IMAGES**2)) + variance - 1 - np.log(variance))
    loss, terms = loss_of(Tokenizing(kl_weight=0.5), tokenizer)
    assert float(terms["kl"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(float(terms["reconstruction"]) + 0.5 * expected, rel=1e-4)


@jax.numpy_rank_promotion("allow")  # the classifier adds biases to images
def test_the_perceptual_term_is_the_distance_in_the_features_of_the_embedded_classifier():
    tokenizer = Rearranged.init(logvar=float(np.log(0.01)))
    loss, terms = loss_of(Tokenizing(kl_weight=0.0, perceptual_weight=2.0), tokenizer)
    keys = Tokenizing().draw(jax.random.key(1), tokenizer, PATH, IMAGES.shape)
    decoded = jax.vmap(lambda x, key: tokenizer.decode_raw(tokenizer.encode_raw(x).sample(key)))(IMAGES, keys)
    classifier = load_fashion_classifier()
    ours, theirs = (jax.vmap(classifier)((x + 1) * 127.5).features for x in (decoded, IMAGES))
    expected = jnp.mean(jnp.sum((ours - theirs) ** 2, axis=1) / (jnp.sum(theirs**2, axis=1) + 1e-6))
    assert float(terms["perceptual"]) == pytest.approx(float(expected), rel=1e-4)
    assert float(loss) == pytest.approx(float(terms["reconstruction"] + 2 * expected), rel=1e-4)


def test_the_loss_of_a_batch_is_the_mean_of_its_images():
    objective, tokenizer = Tokenizing(kl_weight=0.1), Rearranged.init(logvar=-1.0)
    keys = objective.draw(jax.random.key(1), tokenizer, PATH, IMAGES.shape)
    whole, _ = objective.loss(tokenizer, PATH, BATCH, keys)
    parts = [
        objective.loss(tokenizer, PATH, jax.tree.map(lambda leaf, i=i: leaf[i : i + 2], BATCH), keys[i : i + 2])[0]
        for i in (0, 2, 4)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)) / 3, rel=1e-5)
    assert objective.period(6) == 1


@pytest.mark.parametrize("name", ["kl_weight", "perceptual_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(name, value):
    with pytest.raises(BadInput, match=f"objective.{name}: .* is negative or not finite"):
        Tokenizing(**{name: value}).validate(1, 8)
