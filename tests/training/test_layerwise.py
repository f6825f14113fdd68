"""Layer-wise learning rates, by layer and as part of AdamW."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import named_leaves
from umd_eqx.models.vit.classifiers import ViTClassifier
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.probes import encoder_of
from umd_eqx.training.layerwise import layer_rates
from umd_eqx.training.optimisers import AdamW


@pytest.fixture
def params(random_model):
    network = encoder_of(random_model(conditioning="adaln", registers=1))
    return eqx.filter(ViTClassifier(network, Linear.init(64, 5, key=jax.random.key(0)), "patches"), eqx.is_array)


def rates_of(params) -> dict[str, np.ndarray]:
    """The factors for a decay of 0.5, by name."""
    return named_leaves(jax.tree.map(np.asarray, layer_rates(params, 0.5)))


def test_rates_fall_from_the_head_to_the_embedding(params):
    rates = rates_of(params)
    expected = {
        "head.kernel": 1.0,
        "backbone.encoder.norm.scale": 1.0,
        "backbone.embed.kernel": 0.5**4,
        "backbone.positions": 0.5**4,
        "backbone.class_tokens": 0.5**4,
        "backbone.registers": 0.5**4,
    }
    for name, rate in expected.items():
        assert rates[name] == rate, name
    for name in ("backbone.encoder.blocks.norm1.scale", "backbone.encoder.conditioning.layers.kernel"):
        assert rates[name].reshape(-1).tolist() == [0.5**3, 0.5**2, 0.5], name
    assert set(rates) == set(named_leaves(params))


def test_adamw_scales_its_updates_by_them(params):
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3) + 0.1 * leaf, params)

    def updates(config: AdamW) -> dict:
        rule = config.transformation(lambda _: 0.1)
        return named_leaves(jax.jit(lambda g, p: rule.update(g, rule.init(p), p)[0])(grads, params))

    plain, scaled = (updates(AdamW(layer_decay=decay)) for decay in (1.0, 0.5))
    for name, rate in rates_of(params).items():
        np.testing.assert_allclose(scaled[name], np.asarray(plain[name]) * rate, rtol=1e-5, err_msg=name)


def test_networks_without_one_stack_are_refused(random_model):
    whole = eqx.filter(random_model(), eqx.is_array)  # an encoder of 3 layers and a decoder of 1
    for params, said in ((whole, "different depth"), (Linear.init(2, 2, key=jax.random.key(0)), "no blocks")):
        with pytest.raises(BadInput, match=said) as error:
            AdamW(layer_decay=0.9).transformation(lambda _: 1.0).init(params)
        assert error.value.field == "optim.layer_decay"


@pytest.mark.parametrize("decay", [0.0, 1.1, float("nan")])
def test_a_ratio_outside_its_range_is_refused(decay):
    with pytest.raises(BadInput, match="is outside") as error:
        dataclasses.replace(AdamW(steps=1), layer_decay=decay).validate()
    assert error.value.field == "optim.layer_decay"
