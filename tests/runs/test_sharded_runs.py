"""Runs whose state is divided over devices in one way, and then in another."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import numbers, tiny

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import ShardingConfig
from umd_eqx.runs.dryrun import dry_run
from umd_eqx.runs.run import run
from umd_eqx.training import layout

if len(jax.devices()) < 8:
    pytest.skip("needs 8 devices: run with --xla_force_host_platform_device_count=8", allow_module_level=True)


@pytest.fixture(autouse=True)
def small_arrays_are_divided(monkeypatch):
    monkeypatch.setattr(layout, "SMALLEST", 64)
    monkeypatch.setattr("umd_eqx.runs.describing.peak_flops", lambda: (1e12, "not measured"))


def divided(steps: int, **axes: int):
    return dataclasses.replace(tiny(optim__steps=steps), sharding=ShardingConfig(**axes))


def test_a_run_goes_on_over_devices_that_are_divided_otherwise(tmp_path):
    for name, first, then in (("copies", {}, {}), ("divided", {"fsdp": 4}, {"data": 4, "tensor": 2})):
        for limit, axes in ((2, first), (4, then)):
            assert run(divided(4, **axes), run_dir=tmp_path / name, limit_steps=limit).step == limit
    found, expected = numbers(tmp_path / "divided"), numbers(tmp_path / "copies")
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for metric, value in theirs.items():
            np.testing.assert_allclose(ours[metric], value, rtol=2e-4, err_msg=metric)


def test_the_memory_and_the_axes_are_told_before_a_run():
    shares = {}
    for fsdp in (1, 8):
        text = dry_run(divided(4, fsdp=fsdp))
        shares[fsdp] = float(re.search(r"memory +([\d.]+) GB of state", text)[1])
        assert ("(data 1, fsdp 8, tensor 1)" in text) == (fsdp == 8)
    assert shares[8] <= shares[1]


def test_heads_that_cannot_be_divided_are_refused(tmp_path):
    with pytest.raises(BadInput, match="2 heads cannot be divided evenly over 8 devices") as error:
        run(divided(4, tensor=8), run_dir=tmp_path / "run")
    assert error.value.field == "sharding.tensor"
    assert not (tmp_path / "run").exists()
