"""Several hosts, each with its own rows of every batch: rows are a pure function of the process, and so are streams."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import jpeg, slopes

from umd_eqx.core.types import DataSpec
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.loader import batch_at, training_batches
from umd_eqx.data.source_configs import ImageFolder
from umd_eqx.data.transforms import TrainTransform


class Numbered:
    """A source whose image i holds the number i, and which remembers what was asked of it."""

    def __init__(self, size):
        self.spec, self.asked = DataSpec("numbered", size, 0, 4, 4, 1, 1000), []

    def __len__(self):
        return self.spec.num_train

    def __getitem__(self, index):
        self.asked.append(index)
        return {"image": np.full((4, 4, 1), index % 256, np.uint8), "label": index}

    def labels(self, indices):
        return np.asarray(indices)


KEEP = TrainTransform(4, 100, flip=False)


def rows_of(process_index, process_count, batch_size):
    """The rows of a process, as those of a batch that is divided over the devices of all processes in order."""
    each = batch_size // process_count
    return np.arange(process_index * each, (process_index + 1) * each)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_parts_of_all_processes_are_disjoint_and_together_the_epoch(size, process_count, each, seed):
    batch_size = process_count * each
    steps = -(-3 * size // batch_size)  # three epochs, whose ends are within batches
    parts = []
    for process_index in range(process_count):
        source, rows = Numbered(size), rows_of(process_index, process_count, batch_size)
        parts.append(
            [batch_at(source, KEEP, batch_size=batch_size, seed=seed, step=step, rows=rows) for step in range(steps)]
        )
        assert len(source.asked) == steps * each  # nothing is read that belongs to another process
    stream = np.concatenate([np.concatenate([part[step].label for part in parts]) for step in range(steps)])
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(stream[epoch * size : (epoch + 1) * size]), np.arange(size))


def test_two_processes_have_halves_of_what_one_process_has():
    whole = [batch_at(Numbered(30), KEEP, batch_size=6, seed=4, step=step) for step in range(5)]
    first, second = (
        {
            int(label)
            for step in range(5)
            for label in batch_at(Numbered(30), KEEP, batch_size=6, seed=4, step=step, rows=rows_of(index, 2, 6)).label
        }
        for index in range(2)
    )
    assert len(first) == len(second) == 15
    assert not first & second
    assert first | second == set(range(30)) == {int(label) for batch in whole for label in batch.label}


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_stream_that_is_stopped_anywhere_goes_on_as_if_it_had_not_been(tmp_path, decode):
    for i in range(9):
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / f"{i}.jpg").write_bytes(jpeg(slopes(70 + 9 * i, 150 - 5 * i))[: 700 if i == 4 else None])

    def stream(start, **keywords):
        source = SkipBroken(ImageFolder(str(tmp_path)).open("train"))
        settings = {"batch_size": 4, "seed": 6, "start_step": start}
        batches = training_batches(source, TrainTransform(12, decode=decode), **settings, **keywords)
        try:
            return [next(batches) for _ in range(start, 7)]
        finally:
            batches.close()

    whole = stream(0)
    for start in range(1, 7):
        resumed = stream(start, threads=1 + start % 3, prefetch=start % 3)
        for one, other in zip(whole[start:], resumed, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.label, other.label)
