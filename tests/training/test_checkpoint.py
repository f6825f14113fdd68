"""Checkpoints of states as they are; damaged ones are in faults/."""

import dataclasses
import errno
import json
import logging
import sys
import threading
import time
from collections import namedtuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import ShardingConfig, make_mesh, place, replicated
from umd_eqx.core.types import DataSpec
from umd_eqx.recipes.build import Built, build
from umd_eqx.recipes.pretrain import umd
from umd_eqx.training import checkpoint, layout
from umd_eqx.training.checkpoint import Checkpoints
from umd_eqx.training.layout import Layout
from umd_eqx.training.optimisers import AdamW
from umd_eqx.training.space import require_space
from umd_eqx.training.step import TrainState

SPEC = DataSpec("fashion_mnist", 60_000, 10_000, 28, 28, 1, 10)


@pytest.fixture(scope="module")
def built() -> Built:
    config = umd()
    model = dataclasses.replace(config.model, variant="mu/7")
    data = dataclasses.replace(config.data, eval_batch_size=8)
    optim = AdamW(steps=9, mu_dtype="bfloat16")
    return build(dataclasses.replace(config, model=model, data=data, optim=optim), SPEC)


@pytest.fixture(scope="module")
def state(built: Built) -> TrainState:
    """Arrays of every shape and dtype of a state, filled with what no rounding would leave alone."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.normal(size=leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else rng.integers(0, 9)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(fill, built.abstract_state())


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(epath.Path(tmp_path / "checkpoints"), keep=2)
    yield opened
    opened.close()


def at(state: TrainState, step: int) -> TrainState:
    """The state as that of a step, on the same devices."""
    return eqx.tree_at(
        lambda state: state.step, state, jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
    )


def equal(left: TrainState, right: TrainState) -> bool:
    return eqx.tree_equal(jax.device_get(left), jax.device_get(right)) is True


def test_a_state_comes_back_bit_for_bit_on_the_devices_that_are_asked_for(checkpoints, built, state):
    state = at(state, 3)
    checkpoints.save(3, state)
    checkpoints.wait()
    for devices in (1, 8):
        everywhere = replicated(make_mesh(jax.devices()[:devices]))
        found = checkpoints.restore(built.abstract_state(), everywhere, pytest.fail)
        assert found is not None
        step, restored = found
        assert step == 3
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert equal(restored, state)
        assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(restored))


def test_a_state_comes_back_bit_for_bit_however_it_is_divided(checkpoints, built, state, monkeypatch):
    monkeypatch.setattr(layout, "SMALLEST", 64)
    like = built.abstract_state()
    for step, (count, axes) in enumerate([(8, {"fsdp": 4}), (4, {"tensor": 2}), (1, {}), (8, {"fsdp": 8}), (8, {})]):
        placed = Layout(make_mesh(jax.devices()[:count], ShardingConfig(**axes)))
        if step:
            found = checkpoints.restore(like, placed.shardings(like), pytest.fail)
            assert found is not None
            assert found[0] == step
            assert equal(found[1], state)
            state = found[1]
        else:
            state = placed.place(state)
        assert [leaf.sharding for leaf in jax.tree.leaves(state)] == jax.tree.leaves(placed.shardings(like))
        state = at(state, step + 1)
        checkpoints.save(step + 1, state)
        checkpoints.wait()


def test_nothing_saved_is_nothing_found(checkpoints, built):
    assert checkpoints.steps() == []
    assert checkpoints.restore(built.abstract_state(), replicated(built.parts.mesh), pytest.fail) is None


def test_the_newest_are_kept_and_a_step_is_saved_once(checkpoints, state):
    for step in (1, 2, 2, 5):
        checkpoints.save(step, state)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5]


def test_what_is_saved_is_the_state_as_it_was(checkpoints, built, state):
    # The step that follows is given the state's memory to write to, while the save goes on in the background.
    state = place(at(state, 1), replicated(make_mesh(jax.devices()[:1])))
    expected = jax.device_get(state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    checkpoints.save(1, state)
    overwrite(state)
    checkpoints.wait()
    found = checkpoints.restore(built.abstract_state(), replicated(built.parts.mesh), pytest.fail)
    assert found is not None
    assert equal(found[1], expected)


def test_every_file_is_sealed(checkpoints, tmp_path, state):
    checkpoints.save(1, state)
    checkpoints.wait()
    folder = tmp_path / "checkpoints/1"
    sealed = json.loads((folder / "crc32.json").read_text())
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert sealed["step"] == 1
    assert sealed["files"].keys() == files - {"crc32.json"}


def wait_for(path, seconds=60.0):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.01)


def test_the_newest_is_sealed_without_another_save_and_without_the_end(checkpoints, tmp_path, built, state):
    for step in (1, 2):
        checkpoints.save(step, at(state, step))
    wait_for(tmp_path / "checkpoints/2/crc32.json")
    # So that damage to it is seen by whoever comes after a kill.
    largest = max((tmp_path / "checkpoints/2").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    after, said = Checkpoints(checkpoints.directory, keep=2), []
    found = after.restore(built.abstract_state(), replicated(built.parts.mesh), said.append)
    after.close()
    assert found is not None
    assert found[0] == 1
    assert f"checkpoint 2 is corrupt (the file {largest.relative_to(tmp_path / 'checkpoints/2')} is damaged)" in said[0]


def test_training_does_not_wait_for_the_seal(checkpoints, tmp_path, state, monkeypatch):
    begun, go_on, digests = threading.Event(), threading.Event(), checkpoint._digests

    def slowly(folder):
        begun.set()
        assert go_on.wait(60)
        return digests(folder)

    monkeypatch.setattr(checkpoint, "_digests", slowly)
    checkpoints.save(1, state)
    assert begun.wait(60)
    assert not (tmp_path / "checkpoints/1/crc32.json").exists()
    go_on.set()
    checkpoints.wait()
    assert (tmp_path / "checkpoints/1/crc32.json").exists()


@pytest.mark.parametrize("what_comes_next", ["wait", "save", "close"])
def test_an_error_of_the_seal_is_raised_by_what_comes_next_and_once(
    tmp_path, built, state, monkeypatch, what_comes_next
):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    opened = Checkpoints(epath.Path(tmp_path / "checkpoints"), keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digests", full)
        opened.save(1, at(state, 1))
        with pytest.raises(BadInput, match="is full"):
            opened.save(2, state) if what_comes_next == "save" else getattr(opened, what_comes_next)()
    opened.close()
    # The checkpoint itself is whole.
    after, said = Checkpoints(epath.Path(tmp_path / "checkpoints"), keep=2), []
    found = after.restore(built.abstract_state(), replicated(built.parts.mesh), said.append)
    after.close()
    assert found is not None
    assert found[0] == 1
    assert said == ["checkpoint 1 has no crc32.json: it is restored unchecked"]


def test_a_failed_save_is_raised_once_it_has_failed_and_deletes_nothing(checkpoints, tmp_path, state, monkeypatch):
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.wait()
    go_on = threading.Event()

    def fail(step):
        assert go_on.wait(60)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.manager, "_finalize_checkpoint", fail)
        checkpoints.save(3, state)
        checkpoints.require_saved()  # it has not failed yet
        go_on.set()
        assert checkpoints._sealed is not None
        assert checkpoints._sealed.result(60) is False
        with pytest.raises(BadInput, match=r"cannot be used \(Input/output error\)"):
            checkpoints.require_saved()
        checkpoints.require_saved()  # it is raised once
    assert {"1", "2"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}


def test_whoever_asks_is_told_of_sealed_checkpoints(checkpoints, tmp_path, state):
    told = []
    checkpoints.on_sealed = lambda step: told.append((step, (tmp_path / f"checkpoints/{step}/crc32.json").exists()))
    for step in (1, 2, 3):
        checkpoints.save(step, state)
    checkpoints.wait()
    assert told == [(1, True), (2, True), (3, True)]


def free(monkeypatch, space):
    usage = type("usage", (), {"free": space})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)


def size_of(state) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_a_disk_too_small_for_all_checkpoints_is_refused(tmp_path, monkeypatch, built):
    state = built.abstract_state()
    free(monkeypatch, 3 * size_of(state))
    require_space(epath.Path(tmp_path), state, keep=2)
    with pytest.raises(BadInput, match=r"checkpoint\.keep") as error:
        require_space(epath.Path(tmp_path), state, keep=3)
    assert error.value.field == "run_dir"


def test_checkpoints_that_are_there_already_need_no_more_room(checkpoints, tmp_path, monkeypatch, built, state):
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.wait()
    # Neither of these is one that the next save would take the place of.
    (tmp_path / "checkpoints/3.corrupt").mkdir()
    (tmp_path / "checkpoints/4.orbax-checkpoint-tmp").mkdir()
    run_dir, abstract = epath.Path(tmp_path), built.abstract_state()
    for keep, needed in ((1, 1), (2, 1), (3, 2), (4, 3)):
        free(monkeypatch, needed * size_of(abstract))
        require_space(run_dir, abstract, keep)
        free(monkeypatch, needed * size_of(abstract) - 1)
        with pytest.raises(BadInput, match=rf"GB more \({needed} of "):
            require_space(run_dir, abstract, keep)


def test_a_disk_that_fills_up_is_said_to_be_full(checkpoints, state, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.manager, "save", full)
    with pytest.raises(BadInput, match=r"is full\. Free some space and run the same command again"):
        checkpoints.save(1, state)


def test_of_what_orbax_meets_only_the_exception_is_told(checkpoints, monkeypatch, caplog):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for _ in range(2):
        Checkpoints(checkpoints.directory, keep=2).close()
    report = namedtuple("report", "exc_value")
    sys.unraisablehook(report(RuntimeError("Event loop is closed")))
    other = report(RuntimeError("something else"))
    sys.unraisablehook(other)
    assert told == [other]
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    logging.getLogger("asyncio").error("something else")
    assert caplog.messages == ["something else"]
