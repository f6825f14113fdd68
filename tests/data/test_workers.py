"""Batches that are computed by processes in place of threads."""

import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jpegs import jpeg, slopes

from umd_eqx.core.errors import BadInput
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.loader import batch_at, training_batches
from umd_eqx.data.source_configs import Images
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.data.workers import by_processes


def prepare_squares(fails_at=10**9, dies_at=10**9):
    def compute(number):
        if number == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == fails_at:
            raise BadInput("data.max_broken", "too many", "Repair them")
        return number, number**2, os.getpid(), jax.config.jax_platforms

    return compute


def test_items_come_in_order_from_processes_without_an_accelerator():
    items = by_processes(prepare_squares, 5, 2)
    found = list(itertools.islice(items, 7))
    assert [item[:2] for item in found] == [(n, n**2) for n in range(5, 12)]
    assert len({pid for *_, pid, _ in found}) == 2
    assert os.getpid() not in {pid for *_, pid, _ in found}
    assert {platforms for *_, platforms in found} == {"cpu"}
    started = multiprocessing.active_children()
    assert len(started) == 2
    items.close()
    assert multiprocessing.active_children() == []


def test_errors_and_deaths_reach_the_reader():
    items = by_processes(functools.partial(prepare_squares, fails_at=3), 0, 2)
    assert [next(items)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadInput) as error:
        next(items)
    assert (error.value.field, error.value.problem, error.value.hint) == ("data.max_broken", "too many", "Repair them")
    items = by_processes(functools.partial(prepare_squares, dies_at=1), 0, 1)
    assert next(items)[0] == 0
    with pytest.raises(BadInput, match=r"data\.workers: .*exit code -9"):
        next(items)
    assert multiprocessing.active_children() == []


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(BadInput, match=r"data\.worker_kind: the images cannot be sent to another process"):
        next(by_processes(lambda: prepare_squares(), 0, 1))


def test_processes_ignore_signals_and_end_with_their_reader():
    code = """
import functools, multiprocessing, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from test_workers import prepare_squares
from umd_eqx.data.workers import by_processes
if __name__ == "__main__":
    items = by_processes(prepare_squares, 0, 1)
    next(items)
    (child,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child.pid, number)
    time.sleep(0.2)
    next(items), next(items)
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    child = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":  # ended, and waits for an init process
                return
        time.sleep(0.1)
    pytest.fail("the process outlived its reader")


def test_batches_of_processes_are_those_of_threads_and_broken_images_are_counted_here(tmp_path):
    for i in range(12):
        folder = tmp_path / str(i // 6)
        folder.mkdir(exist_ok=True)
        (folder / f"{i % 6}.jpg").write_bytes(jpeg(slopes(100 + i, 140 - i))[: 900 if i == 7 else None])
    transform = TrainTransform(16, decode="fast")
    opened = functools.partial(Images(str(tmp_path)).open, "train+test")
    settings = {"batch_size": 5, "seed": 2}
    source = SkipBroken(opened())
    stream = training_batches(source, transform, **settings, start_step=3, processes=2)
    batches = list(itertools.islice(stream, 5))
    stream.close()
    assert multiprocessing.active_children() == []
    there = SkipBroken(opened())
    for step, batch in enumerate(batches, 3):
        expected = batch_at(there, transform, **settings, step=step)
        for mine, whole in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(mine, whole)
    assert len(there.broken) == 1
    assert source.broken == there.broken

    stream = training_batches(SkipBroken(opened(), max_broken=0), transform, **settings, processes=1)
    with pytest.raises(BadInput, match=r"data\.max_broken: 1 broken images, more than 0"):
        list(itertools.islice(stream, 20))
