"""A plan compiles a run for other devices: how it is divided, what is communicated, and what is refused."""

import dataclasses
import functools

import jax
import pytest
from faults.tiny import tiny

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import ShardingConfig
from umd_eqx.runs import planning, targets
from umd_eqx.runs.planning import compiled, memory_exceeded, pieces, strategy_axes
from umd_eqx.runs.targets import find_target
from umd_eqx.training import layout
from umd_eqx.training.prediction import EFFICIENCY

if len(jax.devices()) < 8:
    pytest.skip("needs 8 devices: run with --xla_force_host_platform_device_count=8", allow_module_level=True)


@pytest.mark.parametrize(
    ("strategy", "devices", "axes"),
    [
        ("dp", 8, (8, 1, 1)),
        ("fsdp", 8, (1, 8, 1)),
        ("tp", 8, (4, 1, 2)),
        ("fsdpxtp", 8, (1, 4, 2)),
        ("FSDPxTP4", 8, (1, 2, 4)),
        ("dpxfsdp8", 256, (32, 8, 1)),
        ("fsdp8", 256, (32, 8, 1)),
        ("dp4xfsdp", 256, (4, 64, 1)),
        ("dp4xfsdp8xtp2", 64, (4, 8, 2)),
        ("tp8", 8, (1, 1, 8)),
    ],
)
def test_a_strategy_divides_all_devices(strategy, devices, axes):
    assert strategy_axes(strategy, devices) == ShardingConfig(*axes)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("", "is not a strategy"),
        ("fsdp0", "is not a strategy"),
        ("dpxdp", "is not a strategy"),
        ("fsdp-2", "is not a strategy"),
        ("dpxfsdp", "leaves two sizes open"),
        ("fsdp3", "does not divide 8 devices"),
        ("dp4xfsdp8", "does not divide 8 devices"),
        ("dp2xfsdp2", "does not divide 8 devices"),
    ],
)
def test_a_strategy_that_does_not_fit_is_refused(strategy, said):
    with pytest.raises(BadInput, match=said) as error:
        strategy_axes(strategy, 8)
    assert error.value.field == "strategy"


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:", "v7:2x2", "cpu:0", "cpu:9999", "h100:0x8", "v5e:2x2x2x2", "cpu:8 ", "v5e:99999"]
)
def test_a_target_that_is_none_is_refused(name):
    with pytest.raises(BadInput) as error:
        find_target(name)
    assert error.value.field == "target"


@pytest.mark.parametrize(("name", "extra"), [("v5e:16x16", "plan-tpu"), ("v4:2x2x2", "plan-tpu")])
def test_a_target_whose_compiler_is_not_installed_says_which_extra_has_it(name, extra, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match=rf'pip install -e "\.\[{extra}\]"') as error:
        find_target(name)
    assert error.value.field == "target"


def test_more_devices_than_jax_was_started_with_are_refused():
    with pytest.raises(BadInput, match="JAX was started with"):
        find_target("cpu:64")


@pytest.fixture(scope="module")
def contract():
    """`contract(strategy)`: the training step of a small network, compiled for eight devices."""
    smallest, layout.SMALLEST = layout.SMALLEST, 64
    config, target = tiny(data__batch_size=16), find_target("cpu:8")

    @functools.cache
    def row(strategy: str):
        (piece,), _ = pieces(config, config.data.expected, target, (strategy,))
        return compiled(piece, dataclasses.replace(target, memory=1e4) if strategy == "tp" else target)

    yield row
    layout.SMALLEST = smallest


def test_data_parallelism_reduces_each_gradient_once_and_gathers_nothing(contract):
    row = contract("dp")
    assert set(row.collectives) == {"all-reduce f32"}
    assert row.collective_bytes == pytest.approx(row.parameter_bytes, rel=0.1)
    assert (row.fits, row.devices, row.part, row.program) == (True, 8, "step", "update")
    assert row.predicted_ms > 0
    assert 0 < row.predicted_mfu < EFFICIENCY


def test_fsdp_gathers_the_parameters_twice_and_reduces_them_once(contract):
    row, copies = contract("fsdp"), contract("dp")
    assert set(row.collectives) == {"all-gather f32", "all-reduce f32"}  # the CPU has no reduce-scatter
    assert row.collectives["all-gather f32"] == pytest.approx(2 * row.parameter_bytes, rel=0.25)
    assert row.collectives["all-reduce f32"] == pytest.approx(row.parameter_bytes, rel=0.25)
    assert row.argument_bytes < 1.25 * copies.argument_bytes / 8
    assert row.flops == copies.flops


@pytest.mark.parametrize("strategy", ["tp", "fsdpxtp"])
def test_tensor_parallelism_exchanges_nothing_between_all_devices(contract, strategy):
    row, copies = contract(strategy), contract("dp")
    assert not any("all-to-all" in kind for kind in row.collectives)
    shared = 2 if strategy == "tp" else 8
    assert row.argument_bytes < 1.3 * copies.argument_bytes / shared


def test_strategies_that_the_network_does_not_allow_are_left_out_by_default_and_refused_if_asked():
    config, target = tiny(model__variant="nano/7"), find_target("cpu:8")  # 3 heads
    found, notes = pieces(config, config.data.expected, target)
    assert [piece.strategy for piece in found] == ["dp", "fsdp"]
    assert [note.split(":")[0] for note in notes] == ["tp is left out", "fsdpxtp is left out"]
    with pytest.raises(BadInput, match="3 heads cannot be divided"):
        pieces(config, config.data.expected, target, ("tp2",))


def test_the_division_of_the_configuration_is_the_default():
    config = dataclasses.replace(tiny(), sharding=ShardingConfig(fsdp=4))
    (piece,), _ = pieces(config, config.data.expected, find_target("cpu:8"))
    assert dict(piece.built.parts.mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}


def test_all_parts_include_a_sampler_even_if_the_run_has_none():
    config = tiny()
    found, _ = pieces(config, config.data.expected, find_target("cpu:8"), ("dp",), "all")
    assert {(piece.part, piece.name) for piece in found} >= {("step", "update"), ("generation", "sample")}
    assert "denoising" in {piece.part for piece in found}


TPU = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.
Used 45.64G of 15.75G hbm. Exceeded hbm capacity by 29.89G."""


def test_what_a_device_cannot_hold_does_not_fit(contract):
    row = contract("tp")  # compiled for devices with 10 kB
    assert (row.fits, row.memory_bytes > 1e4) == (False, True)
    assert contract("fsdpxtp").fits


def test_running_out_of_memory_is_a_row_and_any_other_error_is_not(monkeypatch):
    assert memory_exceeded(TPU) == int(45.64 * 2**30)
    assert memory_exceeded("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123456 bytes.") == 123456
    assert memory_exceeded("INTERNAL: Used 1G of 2G") is None
    config, target = tiny(), find_target("cpu:8")
    (piece,), _ = pieces(config, config.data.expected, target, ("dp",))
    for message, raised in ((TPU, False), ("INTERNAL: crashed", True)):

        def fail(_, message=message):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(planning.Program, "lower", fail)
        if raised:
            with pytest.raises(BadInput, match=r"the compiler for cpu:8 failed on step update \(INTERNAL: crashed\)"):
                compiled(piece, target)
        else:
            row = compiled(piece, target)
            assert (row.fits, row.memory_bytes, row.predicted_ms) == (False, int(45.64 * 2**30), None)
