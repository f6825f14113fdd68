"""What is built of a configuration."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.config import Config, DataConfig, build
from umd_eqx.errors import BadInput
from umd_eqx.optim import EmaConfig, OptimConfig
from umd_eqx.presets import umd
from umd_eqx.sharding import make_mesh
from umd_eqx.types import DataSpec

SPEC = DataSpec("fashion_mnist", 60_000, 10_000, 28, 28, 1, 10)


def small(**fields) -> Config:
    config = umd()
    model = dataclasses.replace(config.model, variant="mu/7")
    data = dataclasses.replace(config.data, eval_batch_size=8, batch_size=8)
    return dataclasses.replace(config, **({"model": model, "data": data} | fields))


def test_the_state_is_a_function_of_the_seed():
    first, again, other = (build(small(seed=seed), SPEC).init() for seed in (0, 0, 1))
    assert eqx.tree_equal(first, again)
    assert not np.array_equal(first.model.embed.kernel, other.model.embed.kernel)
    assert int(first.step) == int(first.skipped) == 0


def test_the_shapes_of_the_state_are_those_of_the_state():
    built = build(small(), SPEC)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), built.abstract_state())
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), built.init())


@pytest.mark.parametrize(
    ("labels", "only_with_labels", "averaged"), [(False, True, False), (True, True, True), (False, False, True)]
)
def test_an_average_is_kept_where_it_is_asked_for(labels, only_with_labels, averaged):
    model = dataclasses.replace(small().model, labels=labels)
    built = build(small(model=model, ema=EmaConfig(only_with_labels=only_with_labels)), SPEC)
    assert (built.abstract_state().ema is not None) == averaged
    assert (built.parts.ema_rate is not None) == averaged
    assert (built.abstract_state().model.num_classes == 10) == labels


def test_the_length_of_a_run_is_given_in_steps_or_in_epochs():
    steps = build(small(optim=OptimConfig(steps=100, warmup=0.1)), SPEC)
    assert (steps.warmup, steps.total) == (10, 100)
    epochs = build(small(optim=OptimConfig(epochs=2, warmup=0.5)), SPEC)
    assert (epochs.warmup, epochs.total) == (7_500, 15_000)
    assert epochs.parts.schedule(7_500) == pytest.approx(1.5e-4 * 8 / 256)


@pytest.mark.parametrize("optim", [OptimConfig(), OptimConfig(steps=1, epochs=1.0)])
def test_a_length_that_is_given_not_at_all_or_twice_is_refused(optim):
    with pytest.raises(BadInput, match="give either epochs or steps"):
        build(small(optim=optim), SPEC)


def test_so_few_epochs_that_there_is_no_step_are_refused():
    with pytest.raises(BadInput, match="is no step") as error:
        build(small(optim=OptimConfig(epochs=1e-6)), SPEC)
    assert error.value.field == "--optim.epochs"


def test_what_must_divide_over_the_devices_is_judged_by_the_mesh_that_is_there():
    config = small(data=dataclasses.replace(small().data, batch_size=12, eval_batch_size=12))
    build(config, SPEC, make_mesh(jax.devices()[:4]))
    with pytest.raises(BadInput, match=r"12 does not divide over 8 devices\. Use 16") as error:
        build(config, SPEC)
    assert error.value.field == "--data.eval-batch-size"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_seed_of_32_bits_is_taken(seed):
    assert build(small(seed=seed), SPEC).parts.seed == seed


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_no_other_seed_is_taken(seed):
    with pytest.raises(BadInput) as error:
        build(small(seed=seed), SPEC)
    assert error.value.field == "--seed"


def test_the_data_are_described_and_opened_as_configured():
    data = DataConfig(train_split="train[:100]", test_split="test[50:60]", max_broken=3, size=28)
    assert data.describe() == DataSpec("fashion_mnist", 100, 10, 28, 28, 1, 10)
    train, test = data.open()
    assert (len(train), len(test)) == (100, 10)
    assert train.broken == set()
    image = data.transform()(train[0]["image"], np.random.default_rng(0))
    assert (image.shape, image.dtype) == ((28, 28, 1), np.float32)


def test_a_configuration_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        umd().seed = 1
