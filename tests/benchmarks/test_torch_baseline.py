"""The PyTorch baseline of the speed benchmark agrees with the package. Needs the extras `bench` and `parity`."""

import dataclasses
import importlib
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.models import AutoEncoder
from umd_eqx.recipes import pretrain as presets
from umd_eqx.recipes.build import build
from umd_eqx.training.optimisers import AdamW
from umd_eqx.training.step import loss_and_grads

pytest.importorskip("flax", reason='pip install "umd_eqx[bench]"')
torch = pytest.importorskip("torch", reason='pip install "umd_eqx[parity]"')

FOLDER = Path(__file__).parents[2] / "benchmarks"
SYSTEMS = ("umd", "mae", "dit", "maskdit")
SIZE, BATCH = 16, 8


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of PyTorch that wait for each other on a busy machine are many times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(monkeypatch):
    """`bench(name)`: a module of the benchmarks, imported as by the scripts in its folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def made(random_model):
    """`made(system, **changes)`: a preset at nano/4, whose decoder has another width, and a network without zeros."""

    def make(system: str, **changes):
        config = presets.PRETRAIN[f"{system}-b4-in64"]()
        network = dataclasses.replace(config.model, variant="nano/4", remat="none")
        data = dataclasses.replace(config.data, size=SIZE, batch_size=BATCH)
        config = dataclasses.replace(config, model=network, data=data, **changes)
        assert config.data.expected is not None
        model = random_model(size=SIZE, variant="nano/4", conditioning=network.conditioning)
        return build(config, config.data.expected), model

    return make


def parameters(bench, system, built, tree):
    """A PyTree like our network (its gradient, for example) by the names of PyTorch's parameters."""
    network = bench("torch_weights").trainer(system, built, tree).network
    return {name: value.detach() for name, value in network.named_parameters()}


@pytest.mark.parametrize("system", SYSTEMS)
def test_loss_and_gradient_of_the_first_step_are_ours(bench, made, system):
    built, model = made(system)
    inputs = bench("flax_baseline").draw(system, jax.random.key(1), BATCH, model.num_patches, (SIZE, SIZE, 3))
    batch, draw = bench("train_step").our_inputs(built, inputs, model.num_patches)
    (loss, _), grads = eqx.filter_jit(lambda m, b, d: loss_and_grads(built.parts, m, b, d))(model, batch, draw)

    trainer = bench("torch_weights").trainer(system, built, model)
    images, torch_draw = bench("torch_weights").torch_inputs(inputs)
    torch_loss = trainer.loss(images, torch_draw)
    torch_loss.backward()
    expected = parameters(bench, system, built, grads)
    for name, parameter in trainer.network.named_parameters():
        if parameter.grad is None:  # dit hides nothing
            assert (system, name) == ("dit", "mask_token")
            parameter.grad = torch.zeros_like(parameter)
        scale = max(1e-3, float(expected[name].abs().max()))
        assert float((parameter.grad - expected[name]).abs().max()) < 1e-4 * scale, name
    norm = float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(grads))))
    assert torch_loss.item() == pytest.approx(float(loss), rel=2e-6)
    assert trainer.update().item() == pytest.approx(norm, rel=1e-5)


def test_updates_are_ours(bench, made):
    """Clipping, moments, decay and schedule, on the same gradients; both moments of ours are float32 here."""
    optim = AdamW(lr=0.01, lr_batch_size=4, steps=6, warmup=0.4, mu_dtype="float32")
    built, model = made("umd", optim=optim)
    trainer = bench("torch_weights").trainer("umd", built, model)
    before = parameters(bench, "umd", built, model)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    update = jax.jit(built.parts.optimiser.update)
    state = built.parts.optimiser.init(params)
    rng = np.random.default_rng(0)
    for _ in range(6):
        grads = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)
        theirs = parameters(bench, "umd", built, eqx.combine(grads, static))
        for name, parameter in trainer.network.named_parameters():
            parameter.grad = theirs[name]
        trainer.update()
        updates, state = update(grads, state, params)
        params = eqx.apply_updates(params, updates)
    expected = parameters(bench, "umd", built, eqx.combine(params, static))
    for name, parameter in trainer.network.named_parameters():
        assert float((expected[name] - before[name]).abs().mean()) > 1e-3, name
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=2e-6, atol=2e-6, msg=name)


def test_weights_of_another_network_are_refused(bench, made, random_model):
    built, model = made("dit")
    network = bench("torch_weights").trainer("dit", built, model).network
    for other, error, what in (
        (random_model(size=SIZE, variant="nano/4", registers=2), ValueError, "registers"),
        (random_model(size=SIZE, variant="nano/4", conditioning="token"), KeyError, "encoder.conditioning.layers"),
        (random_model(size=2 * SIZE, variant="nano/4"), RuntimeError, "positions"),
    ):
        assert isinstance(other, AutoEncoder)
        with pytest.raises(error, match=what):
            bench("torch_weights").load(network, other)


@pytest.mark.parametrize(("system", "noised"), [("umd", 4), ("mae", 0), ("dit", 8), ("maskdit", 8)])
def test_a_draw_has_a_time_and_noise_for_each_noised_image_and_an_order_for_all(bench, made, system, noised):
    built, model = made(system)
    trainer = bench("torch_weights").trainer(system, built, model)
    torch.manual_seed(0)
    draws = [trainer.draw(torch.zeros(BATCH, SIZE, SIZE, 3)) for _ in range(200)]
    assert draws[0].t.shape == (noised,)
    assert draws[0].eps.shape == (noised, SIZE, SIZE, 3)
    if noised:
        t = torch.cat([draw.t for draw in draws])
        assert t.min() >= 1
        assert t.max() <= 1000
        assert t.float().mean() == pytest.approx(500.5, abs=50)
    assert torch.equal(draws[0].order.sort(dim=1).values, torch.arange(model.num_patches).expand(BATCH, -1))


def test_steps_train(bench, made):
    optim = AdamW(lr=1e-3, lr_batch_size=None, steps=100, warmup=0.01)
    built, model = made("umd", optim=optim)
    trainer = bench("torch_weights").trainer("umd", built, model)
    torch.manual_seed(0)
    first, *_, last = (trainer.step(torch.zeros(BATCH, SIZE, SIZE, 3)) for _ in range(10))
    assert last < first
