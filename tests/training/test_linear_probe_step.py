"""The step of a linear probe: one mean and one variance for a batch, wherever its images are."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import Clean
from umd_eqx.core.sharding import batch_sharding, make_mesh, place, replicated
from umd_eqx.core.types import Batch
from umd_eqx.models.vit.layers import Linear
from umd_eqx.models.vit.probes import LinearProbe, encoder_of
from umd_eqx.objectives import LinearProbing
from umd_eqx.recipes.build import build
from umd_eqx.recipes.linear_probe import HEAD, fashion_linear_probe
from umd_eqx.training.step import Parts, TrainState, train_step


def test_a_batch_on_eight_devices_has_one_mean_and_one_variance(random_model):
    rng, losses, heads = np.random.default_rng(0), [], []
    image, label = rng.uniform(-1, 1, (16, 8, 8, 3)), rng.integers(0, 5, 16)
    batch = Batch(jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32), jnp.ones(16, bool))
    head = Linear.init(128, 5, key=jax.random.key(0))
    for devices in (1, 8):
        optimiser = fashion_linear_probe().optim.transformation(lambda _: 1.0)
        mesh = make_mesh(jax.devices()[:devices])
        parts = Parts(LinearProbing(), Clean(), optimiser, lambda _: 1.0, mesh, 0, trainable=HEAD)
        copied = jax.tree.map(jnp.array, Linear(head.kernel, head.bias))
        probe = LinearProbe(encoder_of(random_model()), copied, "both")
        state = place(TrainState.init(probe, optimiser, ema=False, trainable=HEAD), replicated(mesh))
        state, metrics = train_step(parts, state, eqx.filter_shard(batch, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
        heads.append(np.asarray(state.model.head.kernel))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(heads[1], heads[0], atol=1e-5)
    assert np.abs(heads[0] - np.asarray(head.kernel)).max() > 1e-4


def test_accumulation_is_refused():
    config = fashion_linear_probe()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=2))
    message = r"needs a batch of 128 images as a whole, not in 2 micro-batches\. Use 1"
    with pytest.raises(BadInput, match=message) as error:
        build(config, config.data.expected, make_mesh(jax.devices()[:1]))
    assert error.value.field == "optim.accumulate"
