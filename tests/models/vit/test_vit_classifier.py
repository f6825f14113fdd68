"""The ViT classifier: its logits, stochastic depth, and what it takes from a pre-trained network."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.models import ModelConfig
from umd_eqx.models.base import num_parameters
from umd_eqx.models.vit.classifiers import ViTClassifier, ViTClassifierConfig
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.probes import LinearProbeConfig, encoder_of
from umd_eqx.models.vit.stack import Stack

IMAGE = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 8, 3)), jnp.float32)
CONDITIONINGS = ("adaln", "shared-adaln", "token")


def classifier(network, drop_path: float = 0.0) -> ViTClassifier:
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(64, 5)), jnp.float32)
    return ViTClassifier(encoder_of(network), Linear(kernel, jnp.ones(5, jnp.float32)), "patches", drop_path)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_encoder_alone_represents_images_as_before(random_model, conditioning):
    whole = random_model(conditioning=conditioning, registers=2)
    alone = encoder_of(whole)
    represent = eqx.filter_jit(lambda model: model.represent(IMAGE, model.cond()))
    assert eqx.tree_equal(represent(alone), represent(whole))
    assert num_parameters(alone) < 0.8 * num_parameters(whole)
    assert encoder_of(alone).decoder is None


def test_logits_are_those_of_the_head_on_the_mean_of_the_patches(random_model):
    network = random_model()
    found = eqx.filter_jit(classifier(network).logits)(IMAGE)
    features = np.asarray(eqx.filter_jit(lambda m: m.represent(IMAGE, m.cond()))(network).patches)
    np.testing.assert_allclose(found, features @ np.asarray(classifier(network).head.kernel) + 1.0, rtol=1e-4)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("scan", [True, False])
def test_a_dropped_branch_is_that_of_a_network_without_it(random_model, conditioning, scan):
    network = random_model(conditioning=conditioning, scan=scan)
    represent = eqx.filter_jit(lambda m, branches: m.represent(IMAGE, m.cond(), branches).patches)
    plain = represent(network, None)
    np.testing.assert_allclose(represent(network, jnp.ones((3, 2))), plain, rtol=1e-5, atol=1e-5)

    def silenced(factors: np.ndarray):
        """The same network with the last linear layer of each branch multiplied by its factor."""

        def last(model):
            out, down = model.encoder.blocks.attention.out, model.encoder.blocks.mlp.down
            return out.kernel, out.bias, down.kernel, down.bias

        columns = (0, 0, 1, 1)
        scaled = [
            x * factors[:, i].reshape(-1, *[1] * (x.ndim - 1)) for x, i in zip(last(network), columns, strict=True)
        ]
        return eqx.tree_at(last, network, scaled)

    factors = np.array([[1.0, 0.0], [0.0, 2.0], [1.5, 1.0]], np.float32)
    found = represent(network, jnp.asarray(factors))
    np.testing.assert_allclose(found, represent(silenced(factors), None), rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(found) - np.asarray(plain)).max() > 1e-2


def test_branches_are_dropped_more_often_the_later_and_scaled_to_the_same_mean(random_model, monkeypatch):
    model = classifier(random_model(), drop_path=0.4)
    drawn = []
    original = Stack.__call__

    def recorded(self, packed, c, branches=None):
        drawn.append(branches)
        return original(self, packed, c, branches)

    monkeypatch.setattr(Stack, "__call__", recorded)

    def one(key):
        drawn.clear()
        logits = model.training_logits(IMAGE, key)
        return logits, drawn[0]

    logits, branches = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    branches = np.asarray(branches)
    np.testing.assert_allclose(branches.mean(axis=0), np.ones((3, 2)), atol=0.06)
    np.testing.assert_allclose((branches == 0).mean(axis=0), np.tile([[0.0], [0.2], [0.4]], 2), atol=0.03)
    # Attention and MLP of a block are dropped independently.
    assert abs(np.corrcoef(branches[:, 2, 0] == 0, branches[:, 2, 1] == 0)[0, 1]) < 0.06
    assert np.asarray(logits).std(axis=0).min() > 1e-3
    assert model.logits(IMAGE).shape == (5,)


def test_the_weights_of_a_network_are_taken_over_but_not_its_decoder_or_label_embedding(random_model):
    source = random_model(labels=True)
    config = ViTClassifierConfig(network=ModelConfig(variant="mu/4"), head_std=0.1)
    fresh = config.build(8, 3, 5, key=jax.random.key(0))
    started = config.start(fresh, source)
    assert started.head is fresh.head
    assert np.array_equal(started.backbone.encoder.norm.scale, source.encoder.norm.scale)
    assert np.array_equal(started.backbone.positions, source.positions)
    assert (started.backbone.decoder, started.backbone.condition.label_table) == (None, None)
    assert abs(np.asarray(fresh.head.kernel).std() - 0.1) < 0.03
    # A frozen network keeps its label embedding, of which the row for no class is part of its features.
    probe = LinearProbeConfig(network=ModelConfig(variant="mu/4", labels=True), network_classes=5)
    kept = probe.start(probe.build(8, 3, 7, key=jax.random.key(0)), source).backbone
    represent = eqx.filter_jit(lambda model: model.represent(IMAGE, model.cond()))
    assert eqx.tree_equal(represent(kept), represent(source))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (ViTClassifierConfig(drop_path=1.0), "model.drop_path"),
        (ViTClassifierConfig(head_std=-1.0), "model.head_std"),
        (ViTClassifierConfig(network=ModelConfig(labels=True)), "model.network.labels"),
        (ViTClassifierConfig(network=ModelConfig(variant="B/5")), "model.network.variant"),
        (LinearProbeConfig(network=ModelConfig(labels=True)), "model.network_classes"),
    ],
)
def test_what_cannot_be_built_is_refused(config, field):
    config = dataclasses.replace(config)
    with pytest.raises(BadInput) as error:
        config.validate(64)
    assert error.value.field == field
