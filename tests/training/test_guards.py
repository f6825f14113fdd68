"""What is watched while a run is on, with losses, batches and memory that are made up."""

import os
import platform
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Batch
from umd_eqx.training.guards import Guard, MemoryWatch, memory_left, memory_used, release_free_memory

BATCH = Batch(np.arange(12.0).reshape(3, 2, 2, 1), np.array([0, 1, 2]), np.ones(3, bool))


def metrics(loss: float, skipped: int = 0) -> dict:
    return {"loss": jnp.asarray(loss), "skipped": jnp.asarray(skipped)}


def watched(guard: Guard, losses: list[float]) -> None:
    for step, loss in enumerate(losses, start=1):
        guard.watch(step, metrics(loss))
    guard.settle()


class TestSpikes:
    @pytest.mark.parametrize("times", [6, 100])
    def test_a_jump_is_told_with_its_step_and_size(self, times):
        said = []
        guard = Guard(3, said.append)
        watched(guard, [*(1.0 + 0.1 * (i % 5) for i in range(40)), 1.2 * times, 1.1, 1.3])
        assert len(said) == guard.spikes == 1
        assert said[0].startswith(f"step 41: the loss jumped to {1.2 * times:.4g}, {times} times")

    @pytest.mark.parametrize(
        "losses",
        [
            [10.0 * 0.9**i for i in range(100)],
            list(np.random.default_rng(0).uniform(0.4, 1.6, 500)),
            [1.0] * 10 + [100.0],  # too soon to say
            [0.0] * 50 + [1.0],
        ],
        ids=["falling", "noisy", "early", "nothing"],
    )
    def test_what_is_no_jump_is_not_told(self, losses):
        guard = Guard(3, pytest.fail)
        watched(guard, losses)
        assert guard.spikes == 0

    def test_losses_that_stay_high_are_the_usual_ones_after_a_while(self):
        said = []
        watched(Guard(3, said.append), [1.0] * 64 + [50.0] * 200)
        assert 0 < len(said) < 64

    def test_a_loss_of_a_skipped_step_is_none(self):
        said = []
        guard = Guard(5, said.append)
        watched(guard, [1.0] * 20)
        guard.watch(21, metrics(np.nan, skipped=1))
        watched(guard, [1.0] * 3)
        assert guard.spikes == 0
        assert list(guard.losses) == [1.0] * 23


class TestDump:
    def stopped(self, guard: Guard, batch: Batch | None) -> str:
        for step in (7, 8):
            guard.watch(step, metrics(np.inf, skipped=1), batch)
        with pytest.raises(BadInput) as error:
            guard.watch(9, metrics(np.inf, skipped=1), batch)
        return error.value.problem

    def test_the_batch_of_the_last_of_so_many_skipped_steps_is_written(self, tmp_path):
        said = self.stopped(Guard(2, lambda _: None, tmp_path / "dumps"), BATCH)
        assert said.endswith(f"the last of them step 8 (its batch is in {tmp_path / 'dumps/8.npz'})")
        with np.load(tmp_path / "dumps/8.npz", allow_pickle=False) as found:
            np.testing.assert_array_equal(found["image"], BATCH.image)
            np.testing.assert_array_equal(found["label"], BATCH.label)
            assert str(found["metrics"]) == '{"step": 8, "loss": Infinity, "skipped": 1.0}'

    def test_a_disk_that_takes_none_does_not_hide_why_the_run_stopped(self, tmp_path):
        (tmp_path / "dumps").write_text("a file")
        said = []
        assert "not finite for 2 steps" in self.stopped(Guard(2, said.append, tmp_path / "dumps"), BATCH)
        assert any("could not be written" in line for line in said)

    def test_without_a_folder_there_is_none(self):
        assert self.stopped(Guard(2, lambda _: None), BATCH).endswith("step 8")


class TestMemory:
    def row_of(self, sizes, steps, *, last=10**6, left=10**9):
        said, given = [], iter(sizes)
        watch = MemoryWatch(last, said.append, lambda: next(given), lambda: left, release=lambda: None)
        rows = [watch.row(step) for step in steps]
        return rows[-1], said

    def test_the_slope_is_that_of_the_growth(self):
        noise = np.random.default_rng(0).normal(0, 1e5, 60)
        steps = range(10, 610, 10)
        row, said = self.row_of([int(5e8 + 4000 * s + n) for s, n in zip(steps, noise, strict=True)], steps, last=700)
        assert row["throughput/host_memory_mb"] == pytest.approx(502.4, abs=1)
        assert row["throughput/host_memory_kb_per_step"] == pytest.approx(4.0, rel=0.1)
        assert said == []

    def test_a_growth_that_the_machine_will_not_last_is_told_once(self):
        _, said = self.row_of([10**9 + 10**6 * s for s in range(1, 60)], range(1, 60), last=5000)
        assert said == ["memory grows by 1000 KB a step: the 1.0 GB that are left would last until step 1020 of 5000"]

    def test_where_the_system_does_not_say_there_is_no_row(self):
        assert self.row_of([None], [1]) == ({}, [])

    def test_free_memory_is_released_before_it_is_measured_and_not_too_often(self):
        calls, moments = [], iter([0.0, 1.0, 9.9, 10.0, 15.0, 30.0])

        def told(name: str):
            return lambda: calls.append(name)

        watch = MemoryWatch(10, pytest.fail, told("used"), release=told("release"), clock=moments.__next__)
        for step in range(6):
            watch.row(step)
        assert calls == ["release", "used", "used", "used", "release", "used", "used", "release", "used"]

    @pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep no such memory, or say so")
    def test_memory_that_was_freed_between_what_is_kept_goes_back_to_the_system(self):
        # Blocks below the size that glibc maps by itself; the one that is kept last holds the others in the heap.
        blocks = [bytearray(60_000) for _ in range(3_000)]
        kept = blocks[-1:]
        before = memory_used()
        del blocks
        release_free_memory()
        after = memory_used()
        assert before is not None
        assert after is not None
        assert before - after > 100e6
        assert kept

    def test_this_process_has_memory_and_grows_by_what_it_takes(self):
        before = memory_used()
        assert before is not None
        block = np.ones(20_000_000)
        after = memory_used()
        assert after is not None
        assert 100e6 < after - before < 300e6
        assert block.sum() == 20_000_000
        assert (memory_left() or 1) > 0


ARENAS = """
import ctypes, re, sys, threading
from umd_eqx.training.guards import limit_arenas

if sys.argv[1] == "limited":
    limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
hold = threading.Barrier(9)


def take():
    libc.malloc(1000)
    hold.wait()
    hold.wait()


for _ in range(8):
    threading.Thread(target=take, daemon=True).start()
hold.wait()
libc.fopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such pools")
@pytest.mark.parametrize(
    ("how", "environment", "fewest", "most"),
    [
        ("limited", {}, 1, 2),
        ("usual", {}, 3, 100),
        ("limited", {"MALLOC_ARENA_MAX": "5"}, 3, 5),
    ],
)
def test_threads_share_few_pools_of_memory_unless_the_environment_says_otherwise(how, environment, fewest, most):
    words = [sys.executable, "-c", ARENAS, how]
    said = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=True).stdout
    assert fewest <= said.count("<heap nr=") <= most
